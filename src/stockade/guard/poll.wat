;; Waiting for time and descriptors.

;; -- poll_oneoff ----------------------------------------------------------------------------------------------------

;; Native WASI waits as long as it is told, out of reach of any deadline, and holds the thread. So the guard serves polls
;; itself: each clock subscription is put down as a deadline on the monotonic clock, files and outputs are always ready,
;; stdin is when the host has put more of it in place. While nothing is ready, the guest is halted.
;;
;; Beside $scratch: the subscriptions as they were, a deadline for each, the events.
(func (export "poll_oneoff") (param $in i32) (param $out i32) (param $count i32) (param $events_at i32) (result i32)
  (local $errno i32) (local $size i32) (local $copy i32) (local $deadlines i32) (local $answers i32) (local $now i64)
  (local $ready i32) (local $due i64) (local $clocks i32) (local $stdin i32)
  (if (local.tee $errno (call $enter (global.get $N.poll_oneoff))) (then (return (local.get $errno))))
  (if (i32.or (i32.eqz (local.get $count)) (i32.gt_u (local.get $count) (global.get $POLL_MAX)))
    (then (return (global.get $EINVAL))))
  (local.set $size (i32.mul (local.get $count) (global.get $SUBSCRIPTION_SIZE)))
  (call $check (local.get $in) (i64.extend_i32_u (local.get $size)) (i32.const 8))
  (call $check (local.get $out) (i64.extend_i32_u (i32.mul (local.get $count) (global.get $EVENT_SIZE))) (i32.const 8))
  (call $check (local.get $events_at) (i64.const 4) (i32.const 4))
  (local.set $copy
    (call $io_buffer
      (i32.mul (local.get $count)
        (i32.add (i32.add (global.get $SUBSCRIPTION_SIZE) (i32.const 8)) (global.get $EVENT_SIZE)))))
  (local.set $deadlines (i32.add (local.get $copy) (local.get $size)))
  (local.set $answers (i32.add (local.get $deadlines) (i32.shl (local.get $count) (i32.const 3))))
  (call $from_guest (local.get $copy) (local.get $in) (local.get $size))
  (call $from_guest (local.get $answers) (local.get $out) (i32.mul (local.get $count) (global.get $EVENT_SIZE)))
  (if (local.tee $errno (call $unfit (local.get $copy) (local.get $count))) (then (return (local.get $errno))))
  (local.set $now (call $now_for_waits))
  (call $set_deadlines (local.get $copy) (local.get $deadlines) (local.get $count) (local.get $now))
  (local.set $stdin)
  (local.set $clocks)
  (i64.store $state (global.get $waited) (i64.const 0))
  (loop $again
    (local.set $ready
      (call $answer (local.get $answers) (local.get $copy) (local.get $deadlines) (local.get $count) (local.get $now)))
    (if (i32.eqz (local.get $ready))
      (then
        (local.set $due (call $earliest (local.get $deadlines) (local.get $count)))
        (if (i32.and (call $is_virtual) (local.get $clocks))
          (then (call $pass_virtual_time (local.get $due) (local.get $stdin)))
          (else
            (i64.store $state (global.get $wait_nanoseconds) (call $beyond (local.get $due) (local.get $now)))
            (call $wait (global.get $N.poll_oneoff)
              (i32.or
                (select (global.get $FOR_TIME) (i32.const 0) (local.get $clocks))
                (select (global.get $FOR_STDIN) (i32.const 0) (local.get $stdin))))))
        (local.set $now (call $now_for_waits))
        ;; Where there is no clock, how late it has become is not told.
        (if (i32.eq (i32.load $state (global.get $clock_mode)) (global.get $CLOCK_NONE))
          (then (local.set $now (call $least (local.get $now) (local.get $due)))))
        (br $again))))
  (call $to_guest (local.get $out) (local.get $answers) (i32.mul (local.get $ready) (global.get $EVENT_SIZE)))
  (call $put_u32 (local.get $events_at) (local.get $ready))
  (global.get $SUCCESS))

;; In the place of memory.atomic.wait, once the value was found to be the one that is waited on: there is no other thread
;; that could notify this one, so it waits for as long as it wanted to, for ever where the time is negative. Returns that
;; the time has passed.
(func (export "atomic_wait") (param $timeout i64) (result i32)
  (if (i64.lt_s (local.get $timeout) (i64.const 0))
    (then (local.set $timeout (i64.const -1)))
    (else
      (if (call $is_virtual)
        (then
          (call $pass_virtual_time (call $sum (call $now_for_waits) (local.get $timeout)) (i32.const 0))
          (return (i32.const 2))))))
  ;; By the host's clock, for the guest may have none.
  (i64.store $state (global.get $waited) (i64.const 0))
  (loop $again
    (i64.store $state (global.get $wait_nanoseconds)
      (call $beyond (local.get $timeout) (i64.load $state (global.get $waited))))
    (call $wait (global.get $N.poll_oneoff) (global.get $FOR_TIME))
    (br_if $again (i64.lt_u (i64.load $state (global.get $waited)) (local.get $timeout))))
  (i32.const 2))

(func $is_virtual (result i32)
  (i32.eq (i32.load $state (global.get $clock_mode)) (global.get $CLOCK_VIRTUAL)))

;; On the virtual clock nobody waits: it moves on, unless stdin turns out to be there first.
(func $pass_virtual_time (param $due i64) (param $stdin i32)
  (if (local.get $stdin)
    (then
      (call $wait (global.get $N.poll_oneoff) (i32.or (global.get $FOR_STDIN) (global.get $FOR_NOW)))
      (if (call $has_stdin) (then (return)))))
  (call $keep_max (global.get $virtual_now) (local.get $due)))

;; The errno for a poll in which a subscription is not fit, as native WASI has it: EINVAL for a clock that cannot be
;; waited for, EBADF for a descriptor that is no file and no stream of that direction, EPERM for a file of a read-only
;; mount that is to be written. A time on a clock that the policy does not grant cannot be waited for, only for how long.
(func $unfit (param $copy i32) (param $count i32) (result i32)
  (local $type i32) (local $of i32) (local $flags i32)
  (loop $next
    (local.set $type (i32.load8_u $state offset=8 (local.get $copy)))
    (local.set $of (i32.load $state offset=16 (local.get $copy)))
    (local.set $flags (i32.load16_u $state offset=40 (local.get $copy)))
    (if (i32.eqz (local.get $type))
      (then
        (if (i32.or (i32.gt_u (local.get $of) (global.get $MONOTONIC)) (i32.gt_u (local.get $flags) (i32.const 1)))
          (then (return (global.get $EINVAL))))
        (if (i32.and (local.get $flags) (i32.eq (i32.load $state (global.get $clock_mode)) (global.get $CLOCK_NONE)))
          (then (return (global.get $ENOTSUP)))))
      (else
        (if (i32.gt_u (local.get $type) (i32.const 2)) (then (return (global.get $EINVAL))))
        (if (i32.eqz
              (if (result i32) (i32.eq (local.get $type) (i32.const 1))
                (then (call $is_readable (local.get $of)))
                (else (call $is_writable (local.get $of)))))
          (then (return (global.get $EBADF))))
        (if (i32.eq (local.get $type) (i32.const 2))
          (then
            (if (i32.eqz (call $may_change (local.get $of)))
              (then
                (return
                  (call $judge (global.get $N.poll_oneoff) (global.get $EPERM) (i32.const 0) (i32.const 0)))))))))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (global.get $SUCCESS))

;; Whether a descriptor can be polled for reading: stdin can, and any file, however it was opened.
(func $is_readable (param $fd i32) (result i32)
  (if (result i32) (call $is_file (local.get $fd))
    (then (call $has_position (local.get $fd)))
    (else (i32.eq (call $kind (local.get $fd)) (global.get $STDIN)))))

;; The same for writing: stdout and stderr can, and any file.
(func $is_writable (param $fd i32) (result i32)
  (local $kind i32)
  (local.set $kind (call $kind (local.get $fd)))
  (if (result i32) (call $is_file (local.get $fd))
    (then (call $has_position (local.get $fd)))
    (else
      (i32.or (i32.eq (local.get $kind) (global.get $STDOUT)) (i32.eq (local.get $kind) (global.get $STDERR))))))

;; Whether it is no file, or one of a mount that is not read-only: native WASI is asked to change none of its times.
(func $may_change (param $fd i32) (result i32)
  (if (i32.eqz (call $is_file (local.get $fd))) (then (return (i32.const 1))))
  (i32.ne (call $native.fd_filestat_set_times (local.get $fd) (i64.const 0) (i64.const 0) (i32.const 0))
          (global.get $EPERM)))

;; Whether it has a position, as all files have and no folder has.
(func $has_position (param $fd i32) (result i32)
  (i32.eqz (call $native.fd_tell (local.get $fd) (global.get $result))))

;; The time against which waits are measured.
(func $now_for_waits (result i64)
  (if (result i64) (call $is_virtual)
    (then (call $virtual (global.get $MONOTONIC)))
    (else (call $native_time (global.get $MONOTONIC)))))

;; Writes the moment at which each clock subscription is due, or the end of time for one of another kind. Returns whether
;; there are clock subscriptions, and whether stdin is waited for.
(func $set_deadlines (param $copy i32) (param $deadlines i32) (param $count i32) (param $begin i64) (result i32 i32)
  (local $clocks i32) (local $stdin i32) (local $due i64)
  (loop $next
    (local.set $due (i64.const -1))
    (if (i32.eqz (i32.load8_u $state offset=8 (local.get $copy)))
      (then
        (local.set $clocks (i32.const 1))
        (local.set $due
          (call $due (i32.load $state offset=16 (local.get $copy)) (i64.load $state offset=24 (local.get $copy))
            (i32.load16_u $state offset=40 (local.get $copy)) (local.get $begin))))
      (else
        (local.set $stdin
          (i32.or (local.get $stdin)
            (i32.eq (call $kind (i32.load $state offset=16 (local.get $copy))) (global.get $STDIN))))))
    (i64.store $state (local.get $deadlines) (local.get $due))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (local.get $clocks) (local.get $stdin))

;; When a clock subscription is due. No sooner than the guest's own clock shows it: what is ready beside it would tell
;; the time otherwise.
(func $due (param $clock i32) (param $timeout i64) (param $absolute i32) (param $begin i64) (result i64)
  (local $real i64)
  (if (i32.eqz (local.get $absolute))
    (then
      (if (i64.eqz (local.get $timeout)) (then (return (local.get $begin))))
      (return (call $shown_from (call $sum (local.get $begin) (local.get $timeout))))))
  (if (local.get $clock) (then (return (call $shown_from (local.get $timeout)))))
  ;; A time of day: as far off from now as it is on that clock.
  (local.set $real
    (if (result i64) (call $is_virtual)
      (then (call $virtual (global.get $REALTIME)))
      (else (call $native_time (global.get $REALTIME)))))
  (call $sum (local.get $begin) (call $beyond (call $shown_from (local.get $timeout)) (local.get $real))))

;; The nearest of the deadlines.
(func $earliest (param $deadlines i32) (param $count i32) (result i64)
  (local $least i64)
  (local.set $least (i64.const -1))
  (loop $next
    (local.set $least (call $least (local.get $least) (i64.load $state (local.get $deadlines))))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (local.get $least))

;; Writes an event for each subscription that is due or ready. Returns how many there are. As native WASI, it tells of one
;; byte where it does not know how many there are, and of the end of a file as of a hang-up; the bytes between the fields
;; stay as they are.
(func $answer (param $answer i32) (param $copy i32) (param $deadlines i32) (param $count i32) (param $now i64)
  (result i32)
  (local $type i32) (local $ready i32) (local $of i32) (local $is i32)
  (loop $next
    (local.set $type (i32.load8_u $state offset=8 (local.get $copy)))
    (local.set $of (i32.load $state offset=16 (local.get $copy)))
    (local.set $is
      (if (result i32) (i32.eqz (local.get $type))
        (then (i64.le_u (i64.load $state (local.get $deadlines)) (local.get $now)))
        (else
          (i32.or (i32.ne (call $kind (local.get $of)) (global.get $STDIN)) (call $has_stdin)))))
    (if (local.get $is)
      (then
        (i64.store $state (local.get $answer) (i64.load $state (local.get $copy)))   ;; the user's data
        (i32.store16 $state offset=8 (local.get $answer) (global.get $SUCCESS))
        (i32.store8 $state offset=10 (local.get $answer) (local.get $type))
        (i64.store $state offset=16 (local.get $answer) (i64.extend_i32_u (i32.ne (local.get $type) (i32.const 0))))
        (i32.store16 $state offset=24 (local.get $answer) (i32.const 0))
        (if (local.get $type)
          (then
            (if (i32.and (i32.eq (local.get $type) (i32.const 1)) (call $is_file (local.get $of)))
              (then (i32.store16 $state offset=24 (local.get $answer) (call $is_at_end (local.get $of)))))))
        (local.set $answer (i32.add (local.get $answer) (global.get $EVENT_SIZE)))
        (local.set $ready (i32.add (local.get $ready) (i32.const 1)))))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (local.get $ready))

;; Whether nothing is left to read of a file.
(func $is_at_end (param $fd i32) (result i32)
  (local $from i64)
  (if (call $native.fd_tell (local.get $fd) (global.get $result)) (then (return (i32.const 0))))
  (local.set $from (i64.load $state (global.get $result)))
  (i64.ge_u (local.get $from) (call $file_size (local.get $fd))))
