;; Calls about descriptors.

;; -- descriptors ----------------------------------------------------------------------------------------------------

(func (export "fd_advise") (param $fd i32) (param $offset i64) (param $length i64) (param $advice i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_advise))) (then (return (local.get $errno))))
  (call $native.fd_advise (local.get $fd) (local.get $offset) (local.get $length) (local.get $advice)))

;; Native WASI supports this on nothing, so that nothing can grow by it.
(func (export "fd_allocate") (param $fd i32) (param $offset i64) (param $length i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_allocate))) (then (return (local.get $errno))))
  (if (call $is_file (local.get $fd))
    (then
      (return
        (select (global.get $ENOTSUP) (global.get $EBADF)
          (i32.eqz (call $native.fd_tell (local.get $fd) (global.get $result)))))))
  (global.get $EBADF))

(func (export "fd_close") (param $fd i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_close))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.fd_close (local.get $fd))) (then (return (local.get $errno))))
  (call $forget (local.get $fd))
  (global.get $SUCCESS))

(func (export "fd_datasync") (param $fd i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_datasync))) (then (return (local.get $errno))))
  (call $native.fd_datasync (local.get $fd)))

(func (export "fd_fdstat_get") (param $fd i32) (param $fdstat i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_fdstat_get))) (then (return (local.get $errno))))
  (call $begin_answer (local.get $fdstat) (global.get $FDSTAT_SIZE) (i32.const 8))
  (if (local.tee $errno (call $native.fd_fdstat_get (local.get $fd) (global.get $result)))
    (then (return (local.get $errno))))
  (call $to_guest (local.get $fdstat) (global.get $result) (global.get $FDSTAT_SIZE))
  (global.get $SUCCESS))

;; Native WASI leaves the bytes between the fields of an answer as they are, so they come in before it and go out after it.
(func $begin_answer (param $address i32) (param $size i32) (param $align i32)
  (call $check (local.get $address) (i64.extend_i32_u (local.get $size)) (local.get $align))
  (call $from_guest (global.get $result) (local.get $address) (local.get $size)))

(func (export "fd_fdstat_set_flags") (param $fd i32) (param $flags i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_fdstat_set_flags))) (then (return (local.get $errno))))
  (if (i32.and (local.get $flags) (global.get $FD_APPEND))
    (then
      (if (i32.eqz (call $may_append (local.get $fd)))
        (then
          (call $forbid (global.get $N.fd_fdstat_set_flags) (global.get $EACCES) (i32.const 0) (i32.const 0))
          (return (global.get $EACCES))))))
  (if (local.tee $errno (call $native.fd_fdstat_set_flags (local.get $fd) (local.get $flags)))
    (then (return (local.get $errno))))
  (if (call $is_file (local.get $fd)) (then (call $set_kind (local.get $fd) (call $file_kind (local.get $flags)))))
  (global.get $SUCCESS))

;; What a file is, by its flags.
(func $file_kind (param $flags i32) (result i32)
  (select (global.get $APPENDING) (global.get $FILE) (i32.and (local.get $flags) (global.get $FD_APPEND))))

;; Whether writes to what is open may go to its end. Not to a FIFO, which would take them until it is full: then for ever.
;; At a position of its own nothing can be read or written there.
(func $may_append (param $fd i32) (result i32)
  (if (i32.eqz (call $is_file (local.get $fd))) (then (return (i32.const 1))))
  (if (call $native.fd_filestat_get (local.get $fd) (global.get $result)) (then (return (i32.const 1))))
  (i32.or
    (i32.eq (call $type_found) (global.get $REGULAR))
    (i32.eq (call $type_found) (global.get $FOLDER))))

(func (export "fd_fdstat_set_rights") (param $fd i32) (param $base i64) (param $inheriting i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_fdstat_set_rights))) (then (return (local.get $errno))))
  (call $native.fd_fdstat_set_rights (local.get $fd) (local.get $base) (local.get $inheriting)))

(func (export "fd_filestat_get") (param $fd i32) (param $filestat i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_filestat_get))) (then (return (local.get $errno))))
  (call $begin_answer (local.get $filestat) (global.get $FILESTAT_SIZE) (i32.const 8))
  (if (local.tee $errno (call $native.fd_filestat_get (local.get $fd) (global.get $result)))
    (then (return (local.get $errno))))
  (call $give_filestat (local.get $filestat))
  (global.get $SUCCESS))

;; The times of a file tell no more than the clock does: cut like a coarse clock's, or all the same.
(func $give_filestat (param $filestat i32)
  (local $mode i32) (local $time i32)
  (if (local.tee $mode (i32.load $state (global.get $clock_mode)))
    (then
      (local.set $time (i32.add (global.get $result) (i32.const 40)))
      (loop $next
        (i64.store $state (local.get $time)
          (if (result i64) (i32.eq (local.get $mode) (global.get $CLOCK_COARSE))
            (then (call $cut (i64.load $state (local.get $time))))
            (else (i64.load $state (global.get $clock_start)))))
        (br_if $next
          (i32.lt_u (local.tee $time (i32.add (local.get $time) (i32.const 8)))
            (i32.add (global.get $result) (global.get $FILESTAT_SIZE)))))))
  (call $to_guest (local.get $filestat) (global.get $result) (global.get $FILESTAT_SIZE)))

;; A file that is made longer takes room like one that is written.
(func (export "fd_filestat_set_size") (param $fd i32) (param $size i64) (result i32)
  (local $errno i32) (local $growth i64) (local $spent i64)
  (if (local.tee $errno (call $enter (global.get $N.fd_filestat_set_size))) (then (return (local.get $errno))))
  (if (call $is_file (local.get $fd))
    (then
      (if (local.tee $errno (call $native.fd_tell (local.get $fd) (global.get $result)))
        (then (return (local.get $errno))))
      (local.set $growth (call $beyond (local.get $size) (call $file_size (local.get $fd))))
      (if (i32.and
            (call $is_over (local.get $size) (local.get $growth))
            (call $has_right (local.get $fd) (global.get $RIGHT_WRITE)))
        (then
          (if (local.tee $errno
                (call $check_write (global.get $N.fd_filestat_set_size) (local.get $size) (local.get $growth)))
            (then (return (local.get $errno))))))))
  (if (i64.eqz (local.get $growth)) (then (call $forget_sizes)))
  (local.set $spent (call $spend (global.get $write_left) (local.get $growth)))
  (call $add (global.get $written) (local.get $growth))
  (if (local.tee $errno (call $native.fd_filestat_set_size (local.get $fd) (local.get $size)))
    (then
      (call $add (global.get $written) (i64.sub (i64.const 0) (local.get $growth)))
      (call $refund (global.get $write_left) (local.get $spent) (i64.const 0))
      (return (call $judge (global.get $N.fd_filestat_set_size) (local.get $errno) (i32.const 0) (i32.const 0)))))
  (call $set_known_size (local.get $fd) (local.get $size))
  (global.get $SUCCESS))

(func (export "fd_filestat_set_times") (param $fd i32) (param $accessed i64) (param $modified i64) (param $flags i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_filestat_set_times))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $permit_folder (global.get $N.fd_filestat_set_times) (local.get $fd)))
    (then (return (local.get $errno))))
  (call $judge (global.get $N.fd_filestat_set_times)
    (call $native.fd_filestat_set_times (local.get $fd) (local.get $accessed) (local.get $modified) (local.get $flags))
    (i32.const 0) (i32.const 0)))

(func (export "fd_pread") (param $fd i32) (param $iovs i32) (param $count i32) (param $offset i64) (param $taken i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_pread))) (then (return (local.get $errno))))
  (call $read_file (global.get $N.fd_pread) (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset)
    (local.get $taken)))

(func (export "fd_prestat_get") (param $fd i32) (param $prestat i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_prestat_get))) (then (return (local.get $errno))))
  (call $begin_answer (local.get $prestat) (i32.const 8) (i32.const 4))
  (if (local.tee $errno (call $native.fd_prestat_get (local.get $fd) (global.get $result)))
    (then (return (local.get $errno))))
  (call $to_guest (local.get $prestat) (global.get $result) (i32.const 8))
  (global.get $SUCCESS))

;; How long the name is, native WASI does not say here: it has no zero byte, so it ends before the first one.
(func (export "fd_prestat_dir_name") (param $fd i32) (param $name i32) (param $size i32) (result i32)
  (local $errno i32) (local $length i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_prestat_dir_name))) (then (return (local.get $errno))))
  (if (i32.gt_u (local.get $size) (global.get $PATH_MAX)) (then (local.set $size (global.get $PATH_MAX))))
  (memory.fill $state (global.get $path) (i32.const 0) (global.get $PATH_MAX))
  (if (local.tee $errno (call $native.fd_prestat_dir_name (local.get $fd) (global.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (block $end
    (loop $letter
      (br_if $end (i32.ge_u (local.get $length) (global.get $PATH_MAX)))
      (br_if $end (i32.eqz (i32.load8_u $state (i32.add (global.get $path) (local.get $length)))))
      (local.set $length (i32.add (local.get $length) (i32.const 1)))
      (br $letter)))
  (call $check (local.get $name) (i64.extend_i32_u (local.get $length)) (i32.const 1))
  (call $to_guest (local.get $name) (global.get $path) (local.get $length))
  (global.get $SUCCESS))

(func (export "fd_pwrite") (param $fd i32) (param $iovs i32) (param $count i32) (param $offset i64) (param $written i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_pwrite))) (then (return (local.get $errno))))
  (call $write_file (global.get $N.fd_pwrite) (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset)
    (local.get $written)))

(func (export "fd_read") (param $fd i32) (param $iovs i32) (param $count i32) (param $taken i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_read))) (then (return (local.get $errno))))
  (if (i32.eq (call $kind (local.get $fd)) (global.get $STDIN))
    (then (return (call $take_stdin (local.get $iovs) (local.get $count) (local.get $taken)))))
  (call $read_file (global.get $N.fd_read) (local.get $fd) (local.get $iovs) (local.get $count) (i64.const 0)
    (local.get $taken)))

;; Native WASI lists the whole folder for each call, and tells by a buffer that is not full that there is no more. So a
;; large buffer is filled piece by piece, each going on after the last whole entry of the one before.
(func (export "fd_readdir") (param $fd i32) (param $buffer i32) (param $size i32) (param $cookie i64) (param $used i32)
  (result i32)
  (local $errno i32) (local $piece i32) (local $got i32) (local $whole i32) (local $sum i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_readdir))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $permit_folder (global.get $N.fd_readdir) (local.get $fd)))
    (then (return (local.get $errno))))
  (call $check (local.get $used) (i64.const 4) (i32.const 4))
  (call $check (local.get $buffer) (i64.extend_i32_u (local.get $size)) (i32.const 1))
  (loop $next
    (local.set $piece (local.get $size))
    (if (i32.gt_u (local.get $piece) (global.get $IO_MAX)) (then (local.set $piece (global.get $IO_MAX))))
    (if (local.tee $errno
          (call $native.fd_readdir (local.get $fd) (call $io_buffer (local.get $piece)) (local.get $piece)
            (local.get $cookie) (global.get $result)))
      (then (return (local.get $errno))))
    (local.set $got (i32.load $state (global.get $result)))
    (call $walk_entries (local.get $got) (local.get $cookie))
    (local.set $cookie)
    (local.set $whole)
    (if (i32.or (i32.lt_u (local.get $got) (local.get $piece)) (i32.eq (local.get $piece) (local.get $size)))
      ;; The end, or as much as the guest has room for.
      (then (local.set $whole (local.get $got))))
    (call $to_guest (local.get $buffer) (i32.load $state (global.get $scratch)) (local.get $whole))
    (local.set $sum (i32.add (local.get $sum) (local.get $whole)))
    (local.set $buffer (i32.add (local.get $buffer) (local.get $whole)))
    (local.set $size (i32.sub (local.get $size) (local.get $whole)))
    (br_if $next (i32.and (i32.eq (local.get $got) (local.get $piece)) (i32.ne (local.get $size) (i32.const 0)))))
  (call $put_u32 (local.get $used) (local.get $sum))
  (global.get $SUCCESS))

;; Walks over the entries in the I/O buffer: how many bytes are whole ones, and the cookie that follows the last of them.
;; The three bytes between an entry's fields and its name are whatever the host had there, and are cleared.
(func $walk_entries (param $size i32) (param $cookie i64) (result i32 i64)
  (local $entry i32) (local $end i32) (local $begin i32)
  (local.set $begin (i32.load $state (global.get $scratch)))
  (local.set $entry (local.get $begin))
  (local.set $end (i32.add (local.get $begin) (local.get $size)))
  (block $done
    (loop $next
      (br_if $done (i32.lt_u (i32.sub (local.get $end) (local.get $entry)) (global.get $DIRENT_SIZE)))
      (i32.store8 $state offset=21 (local.get $entry) (i32.const 0))
      (i32.store16 $state offset=22 (local.get $entry) (i32.const 0))
      (br_if $done
        (i32.gt_u (i32.load $state offset=16 (local.get $entry))
          (i32.sub (i32.sub (local.get $end) (local.get $entry)) (global.get $DIRENT_SIZE))))
      (local.set $cookie (i64.load $state (local.get $entry)))
      (local.set $entry
        (i32.add (i32.add (local.get $entry) (global.get $DIRENT_SIZE)) (i32.load $state offset=16 (local.get $entry))))
      (br $next)))
  ;; Of a last entry that is cut within its fields, too.
  (local.set $size (i32.add (local.get $entry) (i32.const 21)))
  (if (i32.gt_u (local.get $end) (local.get $size))
    (then
      (memory.fill $state (local.get $size) (i32.const 0)
        (i32.wrap_i64 (call $least (i64.const 3) (i64.extend_i32_u (i32.sub (local.get $end) (local.get $size))))))))
  (i32.sub (local.get $entry) (local.get $begin))
  (local.get $cookie))

;; What the old number was, the new one is from now on: a captured stream stays captured under any number.
(func (export "fd_renumber") (param $from i32) (param $to i32) (result i32)
  (local $errno i32) (local $kind i32) (local $size i64) (local $scope i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_renumber))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.fd_renumber (local.get $from) (local.get $to))) (then (return (local.get $errno))))
  (if (i32.eq (local.get $from) (local.get $to)) (then (return (global.get $SUCCESS))))
  (call $forget (local.get $to))
  (local.set $kind (call $kind (local.get $from)))
  (local.set $size (call $known_size (local.get $from)))
  (local.set $scope (call $scope (local.get $from)))
  (call $set_kind (local.get $to) (local.get $kind))
  (call $set_known_size (local.get $to) (local.get $size))
  (call $set_scope (local.get $to) (local.get $scope))
  (call $set_kind (local.get $from) (global.get $CLOSED))
  (call $set_known_size (local.get $from) (i64.const 0))
  (call $set_scope (local.get $from) (i32.const 0))
  (global.get $SUCCESS))

(func (export "fd_seek") (param $fd i32) (param $offset i64) (param $whence i32) (param $position i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_seek))) (then (return (local.get $errno))))
  (call $check (local.get $position) (i64.const 8) (i32.const 8))
  (if (local.tee $errno
        (call $native.fd_seek (local.get $fd) (local.get $offset) (local.get $whence) (global.get $result)))
    (then (return (local.get $errno))))
  (call $put_u64 (local.get $position) (i64.load $state (global.get $result)))
  (global.get $SUCCESS))

(func (export "fd_sync") (param $fd i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_sync))) (then (return (local.get $errno))))
  (call $native.fd_sync (local.get $fd)))

(func (export "fd_tell") (param $fd i32) (param $position i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_tell))) (then (return (local.get $errno))))
  (call $check (local.get $position) (i64.const 8) (i32.const 8))
  (if (local.tee $errno (call $native.fd_tell (local.get $fd) (global.get $result))) (then (return (local.get $errno))))
  (call $put_u64 (local.get $position) (i64.load $state (global.get $result)))
  (global.get $SUCCESS))

(func (export "fd_write") (param $fd i32) (param $iovs i32) (param $count i32) (param $written i32) (result i32)
  (local $errno i32) (local $kind i32)
  (if (local.tee $errno (call $enter (global.get $N.fd_write))) (then (return (local.get $errno))))
  (local.set $kind (call $kind (local.get $fd)))
  (if (i32.eq (local.get $kind) (global.get $STDOUT))
    (then (return (call $capture (global.get $stdout) (local.get $iovs) (local.get $count) (local.get $written)))))
  (if (i32.eq (local.get $kind) (global.get $STDERR))
    (then (return (call $capture (global.get $stderr) (local.get $iovs) (local.get $count) (local.get $written)))))
  (call $write_file (global.get $N.fd_write) (local.get $fd) (local.get $iovs) (local.get $count) (i64.const 0)
    (local.get $written)))
