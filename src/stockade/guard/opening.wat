;; Opening a path.

;; path_open by native WASI, of the path that stands in $state; the new descriptor stands in the answer. Of what it has
;; reserved, only what an open that fails has not used is given back.
(func $native_open (param $fd i32) (param $lookup i32) (param $size i32) (param $flags i32) (param $rights i64)
  (param $inheriting i64) (param $fdflags i32) (result i32)
  (local $errno i32) (local $times i32)
  (call $add (global.get $opened) (i64.const 1))
  (call $add (global.get $open_now) (i64.const 1))
  (loop $again
    (local.set $times (call $begin_open (local.get $times)))
    (local.set $errno
      (call $native.path_open (local.get $fd) (local.get $lookup) (global.get $path) (local.get $size)
        (local.get $flags) (local.get $rights) (local.get $inheriting) (local.get $fdflags) (global.get $result)))
    (local.set $errno
      (call $end_open (local.get $errno) (local.get $fd) (local.get $lookup) (local.get $size)))
    (br_if $again (i32.eq (local.get $errno) (global.get $EINTR))))
  (if (local.get $errno) (then (call $not_opened)))
  (local.get $errno))

;; Before native WASI opens a path. That may take for ever: a FIFO opens when its other end does. The host interrupts
;; what takes long, and so that it knows, it is told here: for which time it is opened, as a first one is short. Returns
;; that.
(func $begin_open (param $before i32) (result i32)
  (i32.store $state (global.get $opening) (i32.add (local.get $before) (i32.const 1)))
  (i32.load $state (global.get $opening)))

;; After it. What was interrupted is opened anew (EINTR), from a loop, where the engine looks whether the run is to end;
;; unless it turns out to be neither a file nor a folder: that is refused.
(func $end_open (param $errno i32) (param $fd i32) (param $lookup i32) (param $size i32) (result i32)
  (i32.store $state (global.get $opening) (i32.const 0))
  (if (i32.eq (local.get $errno) (global.get $EINTR))
    (then
      (if (i32.eqz (call $is_openable (local.get $fd) (local.get $lookup) (local.get $size)))
        (then (return (global.get $EACCES))))))
  (local.get $errno))

(func $not_opened
  (call $add (global.get $open_now) (i64.const -1))
  (call $add (global.get $opened) (i64.const -1)))

;; Opens a file that is to be made where it is missing. Whether it is cannot be asked before, for others may make it
;; meanwhile: where making is off, native WASI is not asked to; where it is on, it is asked to make a new one first.
(func $open_or_create (param $fd i32) (param $lookup i32) (param $size i32) (param $flags i32) (param $rights i64)
  (param $inheriting i64) (param $fdflags i32) (result i32)
  (local $errno i32) (local $spent i64) (local $as_is i32) (local $exclusive i32) (local $may i32)
  ;; What may not be combined with O_CREAT, native WASI says.
  (if (i32.and (local.get $flags) (global.get $O_DIRECTORY))
    (then
      (return
        (call $native_open (local.get $fd) (local.get $lookup) (local.get $size) (local.get $flags)
          (local.get $rights) (local.get $inheriting) (local.get $fdflags)))))
  (local.set $exclusive (i32.and (local.get $flags) (global.get $O_EXCL)))
  (local.set $as_is
    (i32.and (local.get $flags) (i32.xor (i32.or (global.get $O_CREAT) (global.get $O_EXCL)) (i32.const -1))))
  (local.set $may
    (i32.and
      (i32.load $state (global.get $may_create))
      (i64.ne (i64.load $state (global.get $created_left)) (i64.const 0))))
  (if (local.get $may)
    (then
      (local.set $spent (call $creating))
      (local.set $errno
        (call $native_open (local.get $fd) (local.get $lookup) (local.get $size)
          (i32.or (local.get $flags) (global.get $O_EXCL)) (local.get $rights) (local.get $inheriting) (local.get $fdflags)))
      (if (i32.eqz (local.get $errno)) (then (return (global.get $SUCCESS))))
      (call $not_created (local.get $spent))
      (if (i32.or (local.get $exclusive) (i32.ne (local.get $errno) (global.get $EEXIST)))
        (then (return (local.get $errno))))))
  (if (i32.eqz (local.get $exclusive))
    (then
      (local.set $errno
        (call $native_open (local.get $fd) (local.get $lookup) (local.get $size) (local.get $as_is)
          (call $as_if_made (local.get $rights)) (local.get $inheriting) (local.get $fdflags)))
      (if (i32.ne (local.get $errno) (global.get $ENOENT)) (then (return (local.get $errno))))))
  (if (i32.eqz (local.get $may))
    (then
      (local.set $errno (call $unmakeable (local.get $fd) (global.get $path) (local.get $size)))
      ;; A link to nothing is no file yet.
      (if (i32.and (i32.eq (local.get $errno) (global.get $EEXIST)) (i32.eqz (local.get $exclusive)))
        (then (local.set $errno (global.get $SUCCESS))))
      (if (local.get $errno) (then (return (local.get $errno))))
      (if (local.tee $errno (call $refuse_create (global.get $N.path_open) (global.get $path) (local.get $size)))
        ;; Told already.
        (then (return (i32.sub (i32.const 0) (local.get $errno)))))))
  ;; A link to nothing, something that was removed meanwhile, or the policy only audits.
  (local.set $spent (call $creating))
  (if (local.tee $errno
        (call $native_open (local.get $fd) (local.get $lookup) (local.get $size) (local.get $flags) (local.get $rights)
          (local.get $inheriting) (local.get $fdflags)))
    (then (call $not_created (local.get $spent))))
  (local.get $errno))

;; Native WASI opens for writing, too, what it is asked to make, and for reading what is not asked for by a right to
;; write. The rights with which it does so without being asked to make it.
(func $as_if_made (param $rights i64) (result i64)
  (if (result i64) (i64.eqz (i64.and (local.get $rights) (i64.extend_i32_u (global.get $RIGHT_WRITE))))
    (then
      (i64.or (local.get $rights)
        (i64.extend_i32_u (i32.or (global.get $RIGHT_READ) (global.get $RIGHT_WRITE)))))
    (else (local.get $rights))))

;; Whether a path may be opened. Where the host cannot interrupt what takes for ever, it is looked at before.
(func $may_open (param $fd i32) (param $lookup i32) (param $size i32) (result i32)
  (if (i32.eqz (i32.load $state (global.get $look_first))) (then (return (i32.const 1))))
  (call $is_openable (local.get $fd) (local.get $lookup) (local.get $size)))

;; Whether a path leads to a file or a folder, as far as can be seen: what that is may change at any time. What cannot be
;; looked at, cannot be opened.
(func $is_openable (param $fd i32) (param $lookup i32) (param $size i32) (result i32)
  (local $type i32)
  (if (call $look (local.get $fd) (i32.and (local.get $lookup) (global.get $FOLLOW)) (global.get $path)
        (local.get $size))
    (then (return (i32.const 1))))
  (local.set $type (call $type_found))
  (i32.or
    (i32.eq (local.get $type) (global.get $REGULAR))
    (i32.or (i32.eq (local.get $type) (global.get $FOLDER)) (i32.eq (local.get $type) (global.get $LINK)))))

(func (export "path_open") (param $fd i32) (param $lookup i32) (param $name i32) (param $size i32) (param $flags i32)
  (param $rights i64) (param $inheriting i64) (param $fdflags i32) (param $opened_at i32) (result i32)
  (local $errno i32) (local $new i32)
  (if (local.tee $errno (call $enter (global.get $N.path_open))) (then (return (local.get $errno))))
  (call $check (local.get $opened_at) (i64.const 4) (i32.const 4))
  (if (local.tee $errno
        (call $take_path (global.get $N.path_open)
          (global.get $path) (local.get $fd) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  (if (i32.or
        (i32.and (local.get $flags) (i32.or (global.get $O_CREAT) (global.get $O_TRUNC)))
        (i32.and (i32.wrap_i64 (local.get $rights)) (global.get $RIGHT_WRITE)))
    (then
      (i32.store16 $state (global.get $starts)
        (i32.or (i32.load16_u $state (global.get $starts)) (global.get $FOR_WRITING)))))
  (if (i64.ge_u (i64.load $state (global.get $open_now)) (i64.load $state (global.get $open_limit)))
    (then
      (if (local.tee $errno
            (call $refuse_open (local.get $fd) (local.get $lookup) (local.get $size) (local.get $flags)))
        (then (return (local.get $errno))))))
  (if (i32.eqz (call $may_open (local.get $fd) (local.get $lookup) (local.get $size)))
    (then
      (return (call $judge (global.get $N.path_open) (global.get $EACCES) (global.get $path) (local.get $size)))))
  (if (i32.and (local.get $flags) (global.get $O_TRUNC)) (then (call $forget_sizes)))
  (local.set $errno
    (if (result i32) (i32.and (local.get $flags) (global.get $O_CREAT))
      (then
        (call $open_or_create (local.get $fd) (local.get $lookup) (local.get $size) (local.get $flags)
          (local.get $rights) (local.get $inheriting) (local.get $fdflags)))
      (else
        (call $native_open (local.get $fd) (local.get $lookup) (local.get $size) (local.get $flags) (local.get $rights)
          (local.get $inheriting) (local.get $fdflags)))))
  (if (i32.eqz (local.get $errno))
    (then
      (local.set $new (i32.load $state (global.get $result)))
      (local.set $errno (call $take_in (local.get $new) (local.get $fdflags)))
      (if (local.get $errno)
        (then
          (drop (call $native.fd_close (local.get $new)))
          (call $not_opened)))))
  (if (local.get $errno)
    (then
      (if (i32.lt_s (local.get $errno) (i32.const 0)) (then (return (i32.sub (i32.const 0) (local.get $errno)))))
      (return (call $judge (global.get $N.path_open) (local.get $errno) (global.get $path) (local.get $size)))))
  (call $keep_max (global.get $open_peak) (i64.load $state (global.get $open_now)))
  (call $put_u32 (local.get $opened_at) (local.get $new))
  (global.get $SUCCESS))

;; The violation of opening one too many, unless native WASI would not open it.
(func $refuse_open (param $fd i32) (param $lookup i32) (param $size i32) (param $flags i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $unopenable (local.get $fd) (local.get $lookup) (local.get $size) (local.get $flags)))
    (then
      (return (call $judge (global.get $N.path_open) (local.get $errno) (global.get $path) (local.get $size)))))
  (call $refuse_path (global.get $KIND_open_files) (global.get $N.path_open) (global.get $path) (local.get $size)
    (i64.load $state (global.get $open_limit)) (i64.add (i64.load $state (global.get $open_limit)) (i64.const 1))
    (global.get $EMFILE)))

;; What keeps native WASI from opening what stands in $path, or from making it where that is asked for: an errno, or 0.
(func $unopenable (param $fd i32) (param $lookup i32) (param $size i32) (param $flags i32) (result i32)
  (local $errno i32)
  (if (i32.and (local.get $flags) (global.get $O_CREAT))
    (then
      (local.set $errno (call $unmakeable (local.get $fd) (global.get $path) (local.get $size)))
      ;; What is there is opened, and a link to nothing is no file yet.
      (if (i32.or (i32.ne (local.get $errno) (global.get $EEXIST))
                  (i32.and (local.get $flags) (global.get $O_EXCL)))
        (then (return (local.get $errno))))))
  (local.set $errno
    (call $look (local.get $fd) (i32.and (local.get $lookup) (global.get $FOLLOW)) (global.get $path)
      (local.get $size)))
  (if (i32.eqz (local.get $errno))
    (then
      (return
        (select (global.get $ENOTDIR) (global.get $SUCCESS)
          (i32.and
            (i32.ne (i32.and (local.get $flags) (global.get $O_DIRECTORY)) (i32.const 0))
            (i32.ne (call $type_found) (global.get $FOLDER)))))))
  (select (global.get $SUCCESS) (local.get $errno)
    (i32.and (i32.eq (local.get $errno) (global.get $ENOENT)) (i32.and (local.get $flags) (global.get $O_CREAT)))))

;; Takes a new descriptor into the table; or says with which errno it is to be closed again.
(func $take_in (param $new i32) (param $fdflags i32) (result i32)
  ;; No descriptor is ever out of the table's reach.
  (if (i32.ge_u (local.get $new) (global.get $MAX_DESCRIPTORS)) (then (return (global.get $EMFILE))))
  (call $set_kind (local.get $new) (call $file_kind (local.get $fdflags)))
  (call $set_known_size (local.get $new) (i64.const 0))
  (call $set_scope (local.get $new) (i32.load $state (global.get $found)))
  (if (i32.and (local.get $fdflags) (global.get $FD_APPEND))
    (then
      (if (i32.eqz (call $may_append (local.get $new)))
        (then
          (call $set_kind (local.get $new) (global.get $CLOSED))
          (return (global.get $EACCES))))))
  (global.get $SUCCESS))
