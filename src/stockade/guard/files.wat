;; Reading and writing files.

;; -- reading and writing files ------------------------------------------------------------------------------------------

;; The native read or write that a call stands for, of so many bytes at the guard's I/O buffer; the count stands in the
;; answer. Without a mount there is nothing that this could be of, so native WASI is not asked: $native.fd_write and
;; $native.fd_read may be what the guard asks by then for what halts the guest (engine/_asking.py).
(func $native_io (param $number i32) (param $fd i32) (param $size i32) (param $offset i64) (result i32)
  (if (i32.eqz (i32.load $state (global.get $mounts))) (then (return (global.get $EBADF))))
  (i32.store $state (global.get $iovec) (i32.load $state (global.get $scratch)))
  (i32.store $state offset=4 (global.get $iovec) (local.get $size))
  (if (i32.eq (local.get $number) (global.get $N.fd_read))
    (then
      (return (call $native.fd_read (local.get $fd) (global.get $iovec) (i32.const 1) (global.get $result)))))
  (if (i32.eq (local.get $number) (global.get $N.fd_pread))
    (then
      (return
        (call $native.fd_pread (local.get $fd) (global.get $iovec) (i32.const 1) (local.get $offset)
          (global.get $result)))))
  (if (i32.eq (local.get $number) (global.get $N.fd_write))
    (then
      (return (call $native.fd_write (local.get $fd) (global.get $iovec) (i32.const 1) (global.get $result)))))
  (call $native.fd_pwrite (local.get $fd) (global.get $iovec) (i32.const 1) (local.get $offset) (global.get $result)))

;; The same of no bytes: for what native WASI says of the descriptor.
(func $native_io_of_none (param $number i32) (param $fd i32) (param $offset i64) (param $count_at i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $native_io (local.get $number) (local.get $fd) (i32.const 0) (local.get $offset)))
    (then (return (local.get $errno))))
  (call $put_u32 (local.get $count_at) (i32.load $state (global.get $result)))
  (global.get $SUCCESS))

;; fd_read and fd_pread of what is not stdin. At most what is left of the quota is asked for; where nothing is left, the
;; guard itself tells the end of the file.
(func $read_file (param $number i32) (param $fd i32) (param $iovs i32) (param $count i32) (param $offset i64)
  (param $taken i32) (result i32)
  (local $errno i32) (local $buffer i32) (local $size i32) (local $from i64) (local $wanted i64) (local $got i32)
  (local $spent i64)
  (call $check (local.get $taken) (i64.const 4) (i32.const 4))
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (call $first_buffer (local.get $iovs) (local.get $count))
  (local.set $size)
  (local.set $buffer)
  (if (i32.or (i32.eqz (local.get $size)) (i32.eqz (call $is_file (local.get $fd))))
    (then
      (return (call $native_io_of_none (local.get $number) (local.get $fd) (local.get $offset) (local.get $taken)))))
  ;; A folder has no position.
  (if (local.tee $errno (call $native.fd_tell (local.get $fd) (global.get $result)))
    (then (return (local.get $errno))))
  (local.set $from
    (select (i64.load $state (global.get $result)) (local.get $offset)
      (i32.eq (local.get $number) (global.get $N.fd_read))))
  (if (i32.gt_u (local.get $size) (global.get $IO_MAX)) (then (local.set $size (global.get $IO_MAX))))
  (if (local.tee $errno
        (call $await_tokens (global.get $read_tokens) (global.get $read_rate) (i64.extend_i32_u (local.get $size))
          (global.get $KIND_read_rate) (local.get $number)))
    (then (return (local.get $errno))))
  (local.set $size (call $at_once (global.get $read_tokens) (local.get $size)))
  (local.set $wanted (i64.extend_i32_u (local.get $size)))
  (if (i64.eqz (i64.load $state (global.get $read_left)))
    (then
      (if (i64.ge_u (local.get $from) (call $file_size (local.get $fd)))
        (then
          (call $put_u32 (local.get $taken) (i32.const 0))
          (return (global.get $SUCCESS))))
      (if (i32.eqz (call $has_right (local.get $fd) (global.get $RIGHT_READ)))
        (then
          (return
            (call $native_io_of_none (local.get $number) (local.get $fd) (local.get $offset) (local.get $taken)))))
      (if (local.tee $errno
            (call $check_quota (global.get $KIND_read_bytes) (local.get $number) (global.get $read_left)
              (global.get $read_limit) (i64.const 1)))
        (then (return (local.get $errno))))))
  (if (i32.ne (i32.load $state (global.get $on_violation)) (global.get $AUDIT))
    (then
      (local.set $wanted (call $least (local.get $wanted) (i64.load $state (global.get $read_left))))
      (local.set $size (i32.wrap_i64 (local.get $wanted)))))
  (drop (call $io_buffer (local.get $size)))
  (local.set $spent (call $spend (global.get $read_left) (local.get $wanted)))
  (call $add (global.get $read) (local.get $wanted))
  (if (i32.eqz (local.tee $errno
        (call $native_io (local.get $number) (local.get $fd) (local.get $size) (local.get $offset))))
    (then (local.set $got (i32.load $state (global.get $result)))))
  (call $add (global.get $read) (i64.sub (i64.extend_i32_u (local.get $got)) (local.get $wanted)))
  (call $refund (global.get $read_left) (local.get $spent) (i64.extend_i32_u (local.get $got)))
  (drop (call $spend (global.get $read_tokens) (i64.extend_i32_u (local.get $got))))
  (if (local.get $errno) (then (return (local.get $errno))))
  ;; Only where the policy audits: more than was left.
  (if (i64.gt_u (i64.extend_i32_u (local.get $got)) (local.get $spent))
    (then
      (call $record (global.get $KIND_read_bytes) (local.get $number) (i32.const 0) (i32.const 0)
        (i64.load $state (global.get $read_limit))
        (call $sum (i64.load $state (global.get $read_limit))
          (i64.sub (i64.extend_i32_u (local.get $got)) (local.get $spent)))
        (global.get $AUDIT) (global.get $SUCCESS))))
  (call $data_to_guest (local.get $buffer) (i32.load $state (global.get $scratch)) (local.get $got))
  (call $put_u32 (local.get $taken) (local.get $got))
  (global.get $SUCCESS))

;; Whether a file may come to end here; if not, EFBIG, or 0 where the policy only audits.
(func $check_end (param $number i32) (param $end i64) (result i32)
  (if (i64.le_u (local.get $end) (i64.load $state (global.get $file_size_limit)))
    (then (return (global.get $SUCCESS))))
  (call $refuse (global.get $KIND_file_size) (local.get $number) (i64.load $state (global.get $file_size_limit))
    (local.get $end) (global.get $EFBIG)))

;; By how much a file would grow by what is not written, if it were written from here on: that takes room, too.
(func $gap_before (param $fd i32) (param $from i64) (result i64)
  (local $size i64)
  (if (i64.le_u (local.get $from) (call $known_size (local.get $fd))) (then (return (i64.const 0))))
  (local.set $size (call $file_size (local.get $fd)))
  (call $set_known_size (local.get $fd) (local.get $size))
  (call $beyond (local.get $from) (local.get $size)))

;; Whether a limit is passed by writing so much, to an end there. An errno, or 0. No file can end beyond 2^63-1, whatever
;; the policy says.
(func $check_write (param $number i32) (param $end i64) (param $growth i64) (result i32)
  (local $errno i32)
  (if (i64.lt_s (local.get $end) (i64.const 0)) (then (return (global.get $EINVAL))))
  (if (local.tee $errno (call $check_end (local.get $number) (local.get $end))) (then (return (local.get $errno))))
  (call $check_quota (global.get $KIND_write_bytes) (local.get $number) (global.get $write_left)
    (global.get $write_limit) (local.get $growth)))

;; Whether $check_write would find something.
(func $is_over (param $end i64) (param $growth i64) (result i32)
  (i32.or
    (i64.gt_u (local.get $end) (i64.load $state (global.get $file_size_limit)))
    (i64.gt_u (local.get $growth) (i64.load $state (global.get $write_left)))))

;; fd_write and fd_pwrite to what is not captured.
(func $write_file (param $number i32) (param $fd i32) (param $iovs i32) (param $count i32) (param $offset i64)
  (param $written_at i32) (result i32)
  (local $errno i32) (local $buffer i32) (local $size i32) (local $from i64) (local $gap i64) (local $growth i64)
  (local $got i32) (local $charged i64) (local $spent i64) (local $appends i32)
  (call $check (local.get $written_at) (i64.const 4) (i32.const 4))
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (call $first_buffer (local.get $iovs) (local.get $count))
  (local.set $size)
  (local.set $buffer)
  (if (i32.or (i32.eqz (local.get $size)) (i32.eqz (call $is_file (local.get $fd))))
    (then
      (return
        (call $native_io_of_none (local.get $number) (local.get $fd) (local.get $offset) (local.get $written_at)))))
  (if (local.tee $errno (call $native.fd_tell (local.get $fd) (global.get $result)))
    (then (return (local.get $errno))))
  (local.set $from
    (select (i64.load $state (global.get $result)) (local.get $offset)
      (i32.eq (local.get $number) (global.get $N.fd_write))))
  (if (i32.gt_u (local.get $size) (global.get $IO_MAX)) (then (local.set $size (global.get $IO_MAX))))
  (if (local.tee $errno
        (call $await_tokens (global.get $write_tokens) (global.get $write_rate) (i64.extend_i32_u (local.get $size))
          (global.get $KIND_write_rate) (local.get $number)))
    (then (return (local.get $errno))))
  (local.set $size (call $at_once (global.get $write_tokens) (local.get $size)))
  (local.set $appends (i32.eq (call $kind (local.get $fd)) (global.get $APPENDING)))
  (if (local.get $appends)
    (then
      ;; Where it ends matters to nothing but this limit.
      (local.set $from
        (if (result i64) (i64.eq (i64.load $state (global.get $file_size_limit)) (i64.const -1))
          (then (i64.const 0))
          (else (call $file_size (local.get $fd))))))
    (else (local.set $gap (call $gap_before (local.get $fd) (local.get $from)))))
  (local.set $growth (call $sum (local.get $gap) (i64.extend_i32_u (local.get $size))))
  (if (call $is_over (call $sum (local.get $from) (i64.extend_i32_u (local.get $size))) (local.get $growth))
    (then
      (if (i32.eqz (call $has_right (local.get $fd) (global.get $RIGHT_WRITE)))
        (then
          (return
            (call $native_io_of_none (local.get $number) (local.get $fd) (local.get $offset) (local.get $written_at)))))
      (if (local.tee $errno
            (call $check_write (local.get $number)
              (call $sum (local.get $from) (i64.extend_i32_u (local.get $size))) (local.get $growth)))
        (then (return (local.get $errno))))))
  (call $data_from_guest (call $io_buffer (local.get $size)) (local.get $buffer) (local.get $size))
  (local.set $spent (call $spend (global.get $write_left) (local.get $growth)))
  (call $add (global.get $written) (local.get $growth))
  (if (i32.eqz (local.tee $errno
        (call $native_io (local.get $number) (local.get $fd) (local.get $size) (local.get $offset))))
    (then (local.set $got (i32.load $state (global.get $result)))))
  ;; What was not written has made no gap either.
  (if (local.get $got)
    (then (local.set $charged (i64.add (local.get $gap) (i64.extend_i32_u (local.get $got))))))
  (call $add (global.get $written) (i64.sub (local.get $charged) (local.get $growth)))
  (call $refund (global.get $write_left) (local.get $spent) (local.get $charged))
  (drop (call $spend (global.get $write_tokens) (i64.extend_i32_u (local.get $got))))
  (if (local.get $errno) (then (return (local.get $errno))))
  (if (i32.and (i32.ne (local.get $got) (i32.const 0)) (i32.eqz (local.get $appends)))
    (then
      (local.set $from (call $sum (local.get $from) (i64.extend_i32_u (local.get $got))))
      (if (i64.gt_u (local.get $from) (call $known_size (local.get $fd)))
        (then (call $set_known_size (local.get $fd) (local.get $from))))))
  (call $put_u32 (local.get $written_at) (local.get $got))
  (global.get $SUCCESS))
