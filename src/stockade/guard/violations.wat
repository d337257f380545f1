;; What is against the policy, how it is written down, and what is asked of native WASI to find out.

;; -- violations -----------------------------------------------------------------------------------------------------

;; A violation without a path. Returns the errno with which the call fails, or 0 where the policy only audits.
(func $refuse (param $kind i32) (param $number i32) (param $limit i64) (param $observed i64) (param $errno i32)
  (result i32)
  (call $refuse_path (local.get $kind) (local.get $number) (i32.const 0) (i32.const 0) (local.get $limit)
    (local.get $observed) (local.get $errno)))

;; A violation that is about a path in $state.
(func $refuse_path (param $kind i32) (param $number i32) (param $path i32) (param $size i32) (param $limit i64)
  (param $observed i64) (param $errno i32) (result i32)
  (local $action i32)
  (local.set $action (i32.load $state (global.get $on_violation)))
  (call $record (local.get $kind) (local.get $number) (local.get $path) (local.get $size) (local.get $limit)
    (local.get $observed) (local.get $action)
    (select (global.get $SUCCESS) (local.get $errno) (i32.eq (local.get $action) (global.get $AUDIT))))
  (if (i32.eq (local.get $action) (global.get $AUDIT)) (then (return (global.get $SUCCESS))))
  (call $refused (local.get $number) (local.get $action))
  (local.get $errno))

;; A call is refused: counts that, and ends the run where the policy says so.
(func $refused (param $number i32) (param $action i32)
  (call $add (i32.add (global.get $denied) (i32.shl (local.get $number) (i32.const 3))) (i64.const 1))
  (if (i32.eq (local.get $action) (global.get $STOP)) (then (call $end_run (global.get $STOP_DENIED)))))

;; Passes on what native WASI says. Where it refused for want of rights, that is a violation: a folder that is read-only,
;; a way out of a mount. It is refused whatever the policy says about violations.
(func $judge (param $number i32) (param $errno i32) (param $path i32) (param $size i32) (result i32)
  (if (i32.or
        (i32.or (i32.eq (local.get $errno) (global.get $EPERM)) (i32.eq (local.get $errno) (global.get $ENOTCAPABLE)))
        (i32.or (i32.eq (local.get $errno) (global.get $EROFS)) (i32.eq (local.get $errno) (global.get $EACCES))))
    (then (call $forbid (local.get $number) (local.get $errno) (local.get $path) (local.get $size))))
  (local.get $errno))

;; A path, or what is open, is refused whatever the policy says about violations.
(func $forbid (param $number i32) (param $errno i32) (param $path i32) (param $size i32)
  (local $action i32)
  (local.set $action
    (select (global.get $STOP) (global.get $DENY)
      (i32.eq (i32.load $state (global.get $on_violation)) (global.get $STOP))))
  (call $record (global.get $KIND_path) (local.get $number) (local.get $path) (local.get $size) (i64.const 0)
    (i64.const 0) (local.get $action) (local.get $errno))
  (call $refused (local.get $number) (local.get $action)))

;; Writes a violation down: once for each kind, call and subject, with a count.
(func $record (param $kind i32) (param $number i32) (param $path i32) (param $size i32) (param $limit i64)
  (param $observed i64) (param $action i32) (param $errno i32)
  (local $entry i32) (local $left i32) (local $bit i32) (local $count i32) (local $kept i32) (local $start i32)
  (local $now i64)
  (if (local.get $path) (then (local.set $start (i32.load16_u $state (call $start_of (local.get $path))))))
  (local.set $kept (local.get $size))
  (if (i32.gt_u (local.get $kept) (global.get $SUBJECT_MAX)) (then (local.set $kept (global.get $SUBJECT_MAX))))
  (local.set $now (call $stamp))
  (call $note_event (local.get $kind) (local.get $number) (local.get $path) (local.get $size) (local.get $kept)
    (local.get $start) (local.get $limit) (local.get $observed) (local.get $action) (local.get $errno)
    (local.get $now))
  (local.set $entry (global.get $violations))
  (local.set $count (i32.load $state (global.get $violation_count)))
  (local.set $left (local.get $count))
  (block $new
    (loop $next
      (br_if $new (i32.eqz (local.get $left)))
      (if (call $is_entry (local.get $entry) (local.get $kind) (local.get $number) (local.get $path) (local.get $size)
            (local.get $kept) (local.get $start))
        (then
          (call $add (i32.add (local.get $entry) (i32.const 8)) (i64.const 1))
          (call $keep_max (i32.add (local.get $entry) (i32.const 24)) (local.get $observed))
          (return)))
      (local.set $entry (i32.add (local.get $entry) (global.get $VIOLATION_SIZE)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br $next)))
  (local.set $bit (i32.shl (i32.const 1) (local.get $kind)))
  (if (i32.or
        (i32.ge_u (local.get $count) (global.get $VIOLATIONS_MAX))
        (i32.and
          (i32.ge_u (local.get $count) (global.get $VIOLATIONS_COMMON))
          (i32.ne (i32.and (i32.load $state (global.get $violation_kinds)) (local.get $bit)) (i32.const 0))))
    (then
      (call $add (global.get $violations_dropped) (i64.const 1))
      (return)))
  (i32.store $state (global.get $violation_kinds)
    (i32.or (i32.load $state (global.get $violation_kinds)) (local.get $bit)))
  (i32.store $state (local.get $entry) (local.get $kind))
  (i32.store $state offset=4 (local.get $entry) (local.get $number))
  (i64.store $state offset=8 (local.get $entry) (i64.const 1))
  (i64.store $state offset=16 (local.get $entry) (local.get $limit))
  (i64.store $state offset=24 (local.get $entry) (local.get $observed))
  (i32.store $state offset=40 (local.get $entry) (local.get $size))
  (i32.store16 $state offset=44 (local.get $entry) (local.get $action))
  (i32.store16 $state offset=46 (local.get $entry) (local.get $start))
  (memory.copy $state $state (i32.add (local.get $entry) (global.get $SUBJECT)) (local.get $path) (local.get $kept))
  (i64.store $state offset=32 (local.get $entry) (local.get $now))
  (i32.store $state (global.get $violation_count) (i32.add (local.get $count) (i32.const 1))))

;; Writes an event into the ring.
(func $note_event (param $kind i32) (param $number i32) (param $path i32) (param $size i32) (param $kept i32)
  (param $start i32) (param $limit i64) (param $observed i64) (param $action i32) (param $errno i32) (param $now i64)
  (local $entry i32)
  (local.set $entry
    (i32.add (global.get $events)
      (i32.mul (global.get $VIOLATION_SIZE)
        (i32.rem_u (i32.wrap_i64 (i64.load $state (global.get $event_count))) (global.get $EVENTS_MAX)))))
  (i32.store $state (local.get $entry) (local.get $kind))
  (i32.store $state offset=4 (local.get $entry) (local.get $number))
  (i32.store $state offset=8 (local.get $entry) (local.get $errno))
  (i32.store $state offset=12 (local.get $entry) (local.get $action))
  (i64.store $state offset=16 (local.get $entry) (local.get $limit))
  (i64.store $state offset=24 (local.get $entry) (local.get $observed))
  (i64.store $state offset=32 (local.get $entry) (local.get $now))
  (i32.store $state offset=40 (local.get $entry) (local.get $size))
  (i32.store16 $state offset=46 (local.get $entry) (local.get $start))
  (memory.copy $state $state (i32.add (local.get $entry) (global.get $SUBJECT)) (local.get $path) (local.get $kept))
  (call $add (global.get $event_count) (i64.const 1)))

;; The place in $starts for a path in $state.
(func $start_of (param $path i32) (result i32)
  (i32.add (global.get $starts) (i32.shl (i32.eq (local.get $path) (global.get $path2)) (i32.const 1))))

;; The number of the mount that a descriptor is, from 1 on; 0 where it is another one, or a mount that was renumbered.
(func $mount_number (param $fd i32) (result i32)
  (if (i32.ge_u (local.get $fd) (global.get $MAX_DESCRIPTORS)) (then (return (i32.const 0))))
  (if (i32.load8_u $state (i32.add (global.get $kinds) (local.get $fd))) (then (return (i32.const 0))))
  (select (i32.sub (local.get $fd) (i32.const 2)) (i32.const 0)
    (i32.eq (call $kind (local.get $fd)) (global.get $MOUNT))))

;; Whether an entry is about the same.
(func $is_entry (param $entry i32) (param $kind i32) (param $number i32) (param $path i32) (param $size i32)
  (param $kept i32) (param $start i32) (result i32)
  (local $subject i32)
  (if (i32.ne (i32.load $state (local.get $entry)) (local.get $kind)) (then (return (i32.const 0))))
  (if (i32.ne (i32.load $state offset=4 (local.get $entry)) (local.get $number)) (then (return (i32.const 0))))
  (if (i32.ne (i32.load $state offset=40 (local.get $entry)) (local.get $size)) (then (return (i32.const 0))))
  (if (i32.ne (i32.load16_u $state offset=46 (local.get $entry)) (local.get $start)) (then (return (i32.const 0))))
  (local.set $subject (i32.add (local.get $entry) (global.get $SUBJECT)))
  (block $same
    (loop $next
      (br_if $same (i32.eqz (local.get $kept)))
      (if (i32.ne (i32.load8_u $state (local.get $subject)) (i32.load8_u $state (local.get $path)))
        (then (return (i32.const 0))))
      (local.set $subject (i32.add (local.get $subject) (i32.const 1)))
      (local.set $path (i32.add (local.get $path) (i32.const 1)))
      (local.set $kept (i32.sub (local.get $kept) (i32.const 1)))
      (br $next)))
  (i32.const 1))

;; -- asking native WASI for oneself -----------------------------------------------------------------------------------

;; The time of a native clock; 0 where it has none.
(func $native_time (param $clock i32) (result i64)
  (i64.store $state (global.get $moment) (i64.const 0))
  (drop (call $native.clock_time_get (local.get $clock) (i64.const 0) (global.get $moment)))
  (i64.load $state (global.get $moment)))

;; When a violation happened, for people to read: no limit depends on it. Without a clock it is the host's last look.
(func $stamp (result i64)
  (if (result i64) (i32.load $state (global.get $has_clock))
    (then (call $native_time (global.get $MONOTONIC)))
    (else (i64.load $state (global.get $host_now)))))

;; The size of an open file; 0 where it has none.
(func $file_size (param $fd i32) (result i64)
  (if (result i64) (call $native.fd_filestat_get (local.get $fd) (global.get $result))
    (then (i64.const 0))
    (else (i64.load $state offset=32 (global.get $result)))))

;; Whether what is open was opened with a right.
(func $has_right (param $fd i32) (param $right i32) (result i32)
  (if (call $native.fd_fdstat_get (local.get $fd) (global.get $result)) (then (return (i32.const 0))))
  (i32.ne (i32.and (i32.load $state offset=8 (global.get $result)) (local.get $right)) (i32.const 0)))

;; Looks at a path in $state: an errno, or 0, and then its type stands in the answer.
(func $look (param $fd i32) (param $lookup i32) (param $path i32) (param $size i32) (result i32)
  (call $native.path_filestat_get (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size)
    (global.get $result)))

;; The type of what $look has found.
(func $type_found (result i32)
  (i32.load8_u $state offset=16 (global.get $result)))

;; What keeps native WASI from making something at a path: an errno, or 0 where nothing stands there and the folder that
;; it would stand in does.
(func $unmakeable (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32) (local $parent i32)
  (if (i32.eqz (local.tee $errno
        (call $look (local.get $fd) (global.get $NOFOLLOW) (local.get $path) (local.get $size))))
    (then (return (global.get $EEXIST))))
  (if (i32.ne (local.get $errno) (global.get $ENOENT)) (then (return (local.get $errno))))
  (if (i32.eqz (local.tee $parent (call $parent_size (local.get $path) (local.get $size))))
    ;; In the folder that is open; of an empty path, nothing can be made.
    (then (return (select (global.get $SUCCESS) (global.get $ENOENT) (local.get $size)))))
  (if (local.tee $errno (call $look (local.get $fd) (global.get $FOLLOW) (local.get $path) (local.get $parent)))
    (then (return (local.get $errno))))
  (select (global.get $SUCCESS) (global.get $ENOTDIR) (i32.eq (call $type_found) (global.get $FOLDER))))

;; How much of a path names the folder that its last part stands in.
(func $parent_size (param $path i32) (param $size i32) (result i32)
  (block $name
    (loop $slash
      (br_if $name (i32.eqz (local.get $size)))
      (br_if $name (call $no_slash (local.get $path) (local.get $size)))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (br $slash)))
  (block $parent
    (loop $letter
      (br_if $parent (i32.eqz (local.get $size)))
      (br_if $parent (i32.eqz (call $no_slash (local.get $path) (local.get $size))))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (br $letter)))
  (local.get $size))

;; Whether the last of these bytes is no slash.
(func $no_slash (param $path i32) (param $size i32) (result i32)
  (i32.ne (i32.load8_u $state (i32.sub (i32.add (local.get $path) (local.get $size)) (i32.const 1))) (i32.const 47)))

;; -- descriptors ------------------------------------------------------------------------------------------------------

;; The kind of a descriptor; numbers beyond the table were never given out.
(func $kind (param $fd i32) (result i32)
  (local $kind i32)
  (if (i32.ge_u (local.get $fd) (global.get $MAX_DESCRIPTORS)) (then (return (global.get $CLOSED))))
  (if (local.tee $kind (i32.load8_u $state (i32.add (global.get $kinds) (local.get $fd))))
    (then (return (local.get $kind))))
  (if (i32.le_u (local.get $fd) (i32.const 2)) (then (return (i32.add (local.get $fd) (global.get $STDIN)))))
  (select (global.get $MOUNT) (global.get $CLOSED)
    (i32.lt_u (i32.sub (local.get $fd) (i32.const 3)) (i32.load $state (global.get $mounts)))))

(func $set_kind (param $fd i32) (param $kind i32)
  (if (i32.lt_u (local.get $fd) (global.get $MAX_DESCRIPTORS))
    (then (i32.store8 $state (i32.add (global.get $kinds) (local.get $fd)) (local.get $kind)))))

;; Whether the guest opened it.
(func $is_file (param $fd i32) (result i32)
  (local $kind i32)
  (local.set $kind (call $kind (local.get $fd)))
  (i32.or (i32.eq (local.get $kind) (global.get $FILE)) (i32.eq (local.get $kind) (global.get $APPENDING))))

;; A descriptor is free again.
(func $forget (param $fd i32)
  (if (call $is_file (local.get $fd)) (then (call $add (global.get $open_now) (i64.const -1))))
  (call $set_kind (local.get $fd) (global.get $CLOSED))
  (call $set_known_size (local.get $fd) (i64.const 0))
  (call $set_scope (local.get $fd) (i32.const 0)))

;; How many bytes the file behind a descriptor is known to have, all of which it had before the run or were counted as
;; written. What is written up to there makes no more of it, unless somebody else has cut it short meanwhile.
(func $known_size (param $fd i32) (result i64)
  (if (i32.ge_u (local.get $fd) (global.get $SIZES_MAX)) (then (return (i64.const 0))))
  (i64.load $state (i32.add (global.get $sizes) (i32.shl (local.get $fd) (i32.const 3)))))

(func $set_known_size (param $fd i32) (param $size i64)
  (if (i32.lt_u (local.get $fd) (global.get $SIZES_MAX))
    (then (i64.store $state (i32.add (global.get $sizes) (i32.shl (local.get $fd) (i32.const 3))) (local.get $size)))))

;; Before a file is cut short: it may grow again through any descriptor, and that is to count.
(func $forget_sizes
  (memory.fill $state (global.get $sizes) (i32.const 0) (i32.shl (global.get $SIZES_MAX) (i32.const 3))))
