;; Standard streams, arguments, environment and clocks: served by the guard.

;; -- stdin, stdout, stderr ------------------------------------------------------------------------------------------

;; Appends bytes of the guest to a stream: kept up to its cap, then only the newest in the part behind the head. Once room
;; is there, nothing of this can end the run: no call and no loop stands between copying and counting, so that what is
;; counted is there, and what is there is counted.
(func $append (param $stream i32) (param $source i32) (param $size i32)
  (local $base i32) (local $head i32) (local $cap i32) (local $tail i32) (local $total i64) (local $part i32)
  (local $place i32) (local $after i64)
  (call $check (local.get $source) (i64.extend_i32_u (local.get $size)) (i32.const 1))
  (local.set $base (i32.load $state (local.get $stream)))
  (local.set $head (i32.load $state offset=4 (local.get $stream)))
  (local.set $cap (i32.load $state offset=8 (local.get $stream)))
  (local.set $total (i64.load $state offset=16 (local.get $stream)))
  (local.set $after (i64.add (local.get $total) (i64.extend_i32_u (local.get $size))))
  (call $reserve
    (i64.add (i64.extend_i32_u (local.get $base))
      (select (local.get $after) (i64.extend_i32_u (local.get $cap))
        (i64.lt_u (local.get $after) (i64.extend_i32_u (local.get $cap))))))
  (block $done
    ;; In order, while there is room.
    (if (i64.lt_u (local.get $total) (i64.extend_i32_u (local.get $cap)))
      (then
        (local.set $part (i32.sub (local.get $cap) (i32.wrap_i64 (local.get $total))))
        (if (i32.lt_u (local.get $size) (local.get $part)) (then (local.set $part (local.get $size))))
        (memory.copy $state $guest (i32.add (local.get $base) (i32.wrap_i64 (local.get $total)))
          (local.get $source) (local.get $part))
        (local.set $source (i32.add (local.get $source) (local.get $part)))
        (local.set $size (i32.sub (local.get $size) (local.get $part)))
        (local.set $total (i64.add (local.get $total) (i64.extend_i32_u (local.get $part))))))
    (br_if $done (i32.or (i32.eqz (local.get $size)) (i32.eq (local.get $head) (local.get $cap))))
    ;; Then round and round behind the head. Of more than fits there, only the newest is copied.
    (local.set $tail (i32.sub (local.get $cap) (local.get $head)))
    (if (i32.gt_u (local.get $size) (local.get $tail))
      (then
        (local.set $part (i32.sub (local.get $size) (local.get $tail)))
        (local.set $source (i32.add (local.get $source) (local.get $part)))
        (local.set $total (i64.add (local.get $total) (i64.extend_i32_u (local.get $part))))
        (local.set $size (local.get $tail))))
    (local.set $place (i32.add (local.get $head) (i32.wrap_i64
      (i64.rem_u (i64.sub (local.get $total) (i64.extend_i32_u (local.get $head)))
                 (i64.extend_i32_u (local.get $tail))))))
    (local.set $part (i32.sub (local.get $cap) (local.get $place)))
    (if (i32.lt_u (local.get $size) (local.get $part)) (then (local.set $part (local.get $size))))
    (memory.copy $state $guest (i32.add (local.get $base) (local.get $place)) (local.get $source) (local.get $part))
    (memory.copy $state $guest (i32.add (local.get $base) (local.get $head))
      (i32.add (local.get $source) (local.get $part)) (i32.sub (local.get $size) (local.get $part))))
  (i64.store $state offset=16 (local.get $stream) (local.get $after)))

;; Passes output on to the host as it is written, in order, through a ring of frames: a head of eight bytes (1 for
;; stdout or 2 for stderr, then the length), then the bytes, filled up to a multiple of eight. Where the ring is full, the
;; guest is halted until the host has emptied it.
(func $tell (param $stream i32) (param $source i32) (param $size i32)
  (local $part i32) (local $ring i32) (local $most i32) (local $head i64)
  (local.set $ring (i32.load $state (global.get $tap_size)))
  (local.set $most (i32.sub (i32.shr_u (local.get $ring) (i32.const 1)) (i32.const 8)))
  (loop $next
    (if (i32.eqz (local.get $size)) (then (return)))
    (local.set $part (local.get $size))
    (if (i32.gt_u (local.get $part) (local.get $most)) (then (local.set $part (local.get $most))))
    (loop $full
      (if (i64.gt_u
            (i64.add (i64.sub (i64.load $state (global.get $tap_written)) (i64.load $state (global.get $tap_read)))
                     (i64.extend_i32_u (call $frame_size (local.get $part))))
            (i64.extend_i32_u (local.get $ring)))
        (then
          (call $wait (global.get $N.fd_write) (global.get $FOR_ROOM))
          (br $full))))
    (local.set $head (i64.load $state (global.get $tap_written)))
    ;; Heads are aligned and the ring's size is a multiple of eight: a head never wraps.
    (i64.store $state (call $in_ring (local.get $head))
      (i64.or (select (i64.const 1) (i64.const 2) (i32.eq (local.get $stream) (global.get $stdout)))
              (i64.shl (i64.extend_i32_u (local.get $part)) (i64.const 32))))
    (call $into_ring (i64.add (local.get $head) (i64.const 8)) (local.get $source) (local.get $part))
    (i64.store $state (global.get $tap_written)
      (i64.add (local.get $head) (i64.extend_i32_u (call $frame_size (local.get $part)))))
    (local.set $source (i32.add (local.get $source) (local.get $part)))
    (local.set $size (i32.sub (local.get $size) (local.get $part)))
    (br $next)))

(func $frame_size (param $size i32) (result i32)
  (i32.and (i32.add (local.get $size) (i32.const 15)) (i32.const -8)))

(func $in_ring (param $at i64) (result i32)
  (i32.add (i32.load $state (global.get $tap))
    (i32.and (i32.wrap_i64 (local.get $at)) (i32.sub (i32.load $state (global.get $tap_size)) (i32.const 1)))))

(func $into_ring (param $at i64) (param $source i32) (param $size i32)
  (local $place i32) (local $first i32)
  (local.set $place (call $in_ring (local.get $at)))
  (local.set $first
    (i32.sub (i32.add (i32.load $state (global.get $tap)) (i32.load $state (global.get $tap_size))) (local.get $place)))
  (if (i32.lt_u (local.get $size) (local.get $first)) (then (local.set $first (local.get $size))))
  (call $from_guest (local.get $place) (local.get $source) (local.get $first))
  (call $from_guest (i32.load $state (global.get $tap)) (i32.add (local.get $source) (local.get $first))
    (i32.sub (local.get $size) (local.get $first))))

;; fd_write to a captured stream. Stops early, as POSIX lets a write do, before the count would not fit its type.
(func $capture (param $stream i32) (param $iovs i32) (param $count i32) (param $written i32) (result i32)
  (local $sum i32) (local $size i32)
  (call $check (local.get $written) (i64.const 4) (i32.const 4))
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (if (local.get $count)
    (then
      (call $check (local.get $iovs) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 3)) (i32.const 4))))
  (block $done
    (loop $next
      (br_if $done (i32.eqz (local.get $count)))
      (local.set $size (call $get_u32 (i32.add (local.get $iovs) (i32.const 4))))
      (br_if $done (i32.lt_u (i32.add (local.get $sum) (local.get $size)) (local.get $sum)))
      (if (local.get $size)
        (then
          (call $append (local.get $stream) (call $get_u32 (local.get $iovs)) (local.get $size))
          (if (i32.load $state (global.get $tap))
            (then (call $tell (local.get $stream) (call $get_u32 (local.get $iovs)) (local.get $size))))))
      (local.set $sum (i32.add (local.get $sum) (local.get $size)))
      (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
  (call $put_u32 (local.get $written) (local.get $sum))
  (global.get $SUCCESS))

;; Whether there are bytes of stdin to read, or its end is known.
(func $has_stdin (result i32)
  (i32.or
    (i32.lt_u (i32.load $state (global.get $stdin_read)) (i32.load $state (global.get $stdin_size)))
    (i32.ne (i32.load $state (global.get $stdin_mode)) (global.get $STDIN_ASKED))))

;; fd_read from stdin. Waits where there is nothing yet, unless nothing is asked for.
(func $take_stdin (param $iovs i32) (param $count i32) (param $taken i32) (result i32)
  (local $left i32) (local $size i32) (local $sum i32) (local $source i32) (local $buffer i32)
  (call $check (local.get $taken) (i64.const 4) (i32.const 4))
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (call $first_buffer (local.get $iovs) (local.get $count))
  (local.set $size)
  (local.set $buffer)
  (if (local.get $size)
    (then
      (i64.store $state (global.get $waited) (i64.const 0))
      (block $there
        (loop $again
          (br_if $there (call $has_stdin))
          (call $wait (global.get $N.fd_read) (global.get $FOR_STDIN))
          (br $again)))))
  (local.set $source (i32.add (i32.load $state (global.get $stdin)) (i32.load $state (global.get $stdin_read))))
  (local.set $left (i32.sub (i32.load $state (global.get $stdin_size)) (i32.load $state (global.get $stdin_read))))
  (block $done
    (loop $next
      (br_if $done (i32.or (i32.eqz (local.get $count)) (i32.eqz (local.get $left))))
      (local.set $size (call $get_u32 (i32.add (local.get $iovs) (i32.const 4))))
      (if (i32.gt_u (local.get $size) (local.get $left)) (then (local.set $size (local.get $left))))
      (if (local.get $size)
        (then
          (local.set $buffer (call $get_u32 (local.get $iovs)))
          (call $check (local.get $buffer) (i64.extend_i32_u (local.get $size)) (i32.const 1))
          (call $to_guest (local.get $buffer) (local.get $source) (local.get $size))))
      (local.set $source (i32.add (local.get $source) (local.get $size)))
      (local.set $left (i32.sub (local.get $left) (local.get $size)))
      (local.set $sum (i32.add (local.get $sum) (local.get $size)))
      (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
  (i32.store $state (global.get $stdin_read) (i32.add (i32.load $state (global.get $stdin_read)) (local.get $sum)))
  (call $put_u32 (local.get $taken) (local.get $sum))
  (global.get $SUCCESS))

;; -- arguments and environment --------------------------------------------------------------------------------------

;; Copies a block of zero-ended strings to the guest, and the address of each before it: the order shows where they overlap.
(func $give_strings (param $source i32) (param $count i32) (param $size i32) (param $pointers i32) (param $buffer i32)
  (local $from i32) (local $at i32)
  (if (i32.eqz (local.get $count)) (then (return)))
  (call $check (local.get $pointers) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 2)) (i32.const 4))
  (call $check (local.get $buffer) (i64.extend_i32_u (local.get $size)) (i32.const 1))
  ;; As native WASI does where what comes after the last has no address: at the end of 4 GiB.
  (if (i32.or (i32.eqz (i32.add (local.get $pointers) (i32.shl (local.get $count) (i32.const 2))))
              (i32.eqz (i32.add (local.get $buffer) (local.get $size))))
    (then (call $check (i32.const -1) (i64.const 2) (i32.const 1))))
  (local.set $at (local.get $source))
  (loop $string
    (local.set $from (local.get $at))
    (loop $byte
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $byte (i32.load8_u $state (i32.sub (local.get $at) (i32.const 1)))))
    (call $put_u32 (local.get $pointers) (local.get $buffer))
    (local.set $size (i32.sub (local.get $at) (local.get $from)))
    (call $to_guest (local.get $buffer) (local.get $from) (local.get $size))
    (local.set $pointers (i32.add (local.get $pointers) (i32.const 4)))
    (local.set $buffer (i32.add (local.get $buffer) (local.get $size)))
    (br_if $string (local.tee $count (i32.sub (local.get $count) (i32.const 1))))))

(func $give_sizes (param $count i32) (param $size i32) (param $count_at i32) (param $size_at i32)
  (call $check (local.get $count_at) (i64.const 4) (i32.const 4))
  (call $check (local.get $size_at) (i64.const 4) (i32.const 4))
  ;; In this order, which shows where both are the same.
  (call $put_u32 (local.get $size_at) (local.get $size))
  (call $put_u32 (local.get $count_at) (local.get $count)))

(func (export "args_get") (param $argv i32) (param $buffer i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.args_get))) (then (return (local.get $errno))))
  (call $give_strings (i32.load $state (global.get $args)) (i32.load $state (global.get $args_count))
    (i32.load $state (global.get $args_size)) (local.get $argv) (local.get $buffer))
  (global.get $SUCCESS))

(func (export "args_sizes_get") (param $count i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.args_sizes_get))) (then (return (local.get $errno))))
  (call $give_sizes (i32.load $state (global.get $args_count)) (i32.load $state (global.get $args_size))
    (local.get $count) (local.get $size))
  (global.get $SUCCESS))

(func (export "environ_get") (param $environ i32) (param $buffer i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.environ_get))) (then (return (local.get $errno))))
  (call $give_strings (i32.load $state (global.get $environ)) (i32.load $state (global.get $environ_count))
    (i32.load $state (global.get $environ_size)) (local.get $environ) (local.get $buffer))
  (global.get $SUCCESS))

(func (export "environ_sizes_get") (param $count i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.environ_sizes_get))) (then (return (local.get $errno))))
  (call $give_sizes (i32.load $state (global.get $environ_count)) (i32.load $state (global.get $environ_size))
    (local.get $count) (local.get $size))
  (global.get $SUCCESS))

;; -- clocks ---------------------------------------------------------------------------------------------------------

(func (export "clock_res_get") (param $clock i32) (param $resolution i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.clock_res_get))) (then (return (local.get $errno))))
  (call $check (local.get $resolution) (i64.const 8) (i32.const 8))
  (if (local.tee $errno (call $native.clock_res_get (local.get $clock) (global.get $result)))
    (then (return (local.get $errno))))
  (call $put_u64 (local.get $resolution)
    (if (result i64) (i32.load $state (global.get $clock_mode))
      (then (i64.load $state (global.get $clock_resolution)))
      (else (i64.load $state (global.get $result)))))
  (global.get $SUCCESS))

(func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $time i32) (result i32)
  (local $errno i32) (local $mode i32)
  (if (local.tee $errno (call $enter (global.get $N.clock_time_get))) (then (return (local.get $errno))))
  ;; As $check does it, but quicker: this is the call that programs make most.
  (if (i32.and (local.get $time) (i32.const 7)) (then (call $check (local.get $time) (i64.const 8) (i32.const 8))))
  (drop (i64.load $guest (local.get $time)))
  (local.set $mode (i32.load $state (global.get $clock_mode)))
  (if (i32.and
        (i32.eq (local.get $mode) (global.get $CLOCK_VIRTUAL))
        (i32.le_u (local.get $clock) (global.get $MONOTONIC)))
    (then
      (call $put_u64 (local.get $time) (call $virtual (local.get $clock)))
      (i64.store $state (global.get $virtual_now)
        (call $sum (i64.load $state (global.get $virtual_now)) (i64.load $state (global.get $clock_step))))
      (return (global.get $SUCCESS))))
  (if (local.tee $errno
        (call $native.clock_time_get (local.get $clock) (local.get $precision) (global.get $result)))
    (then (return (local.get $errno))))
  (i64.store $guest (local.get $time)
    (if (result i64) (local.get $mode)
      (then (call $cut (i64.load $state (global.get $result))))
      (else (i64.load $state (global.get $result)))))
  (global.get $SUCCESS))

;; A native time as the guest may see it: cut where its clock is coarse.
(func $cut (param $time i64) (result i64)
  (if (result i64) (i32.eq (i32.load $state (global.get $clock_mode)) (global.get $CLOCK_COARSE))
    (then
      (i64.sub (local.get $time) (i64.rem_u (local.get $time) (i64.load $state (global.get $clock_resolution)))))
    (else (local.get $time))))

;; The first moment that a guest's clock shows this time or a later one.
(func $shown_from (param $time i64) (result i64)
  (if (result i64)
    (i32.and
      (i32.eq (i32.load $state (global.get $clock_mode)) (global.get $CLOCK_COARSE))
      (i64.ne (call $cut (local.get $time)) (local.get $time)))
    (then (call $sum (call $cut (local.get $time)) (i64.load $state (global.get $clock_resolution))))
    (else (local.get $time))))

;; The time on the virtual clock: of day, or since the beginning of the run.
(func $virtual (param $clock i32) (result i64)
  (call $sum (i64.load $state (global.get $virtual_now))
    (select (i64.const 0) (i64.load $state (global.get $clock_start)) (local.get $clock))))
