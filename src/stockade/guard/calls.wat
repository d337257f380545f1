;; What every call of WASI passes: the guest's memory, quotas, waiting, and how a call is entered.

;; -- the guest's memory: the only functions that touch it, but for $append and clock_time_get ---------------------------

;; Traps unless all of these bytes are inside the guest's memory, and the address is a multiple of $align.
(func $check (param $address i32) (param $size i64) (param $align i32)
  (if (i32.or
        (i64.gt_u (i64.add (i64.extend_i32_u (local.get $address)) (local.get $size))
                  (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
        (i32.ne (i32.and (local.get $address) (i32.sub (local.get $align) (i32.const 1))) (i32.const 0)))
    ;; Two bytes from the last address on are beyond the end of any memory.
    (then (memory.copy $guest $guest (i32.const -1) (i32.const -1) (i32.const 2)))))

(func $from_guest (param $place i32) (param $address i32) (param $size i32)
  (memory.copy $state $guest (local.get $place) (local.get $address) (local.get $size)))

(func $to_guest (param $address i32) (param $place i32) (param $size i32)
  (memory.copy $guest $state (local.get $address) (local.get $place) (local.get $size)))

;; The same for the data of a read or write, a piece at a time and the last one first: native WASI has touched that last,
;; and touches the first one first, so that the processor has more of it at hand. Copying uses fuel by the byte.
(func $data_from_guest (param $place i32) (param $address i32) (param $size i32)
  (local $rest i32)
  (loop $next
    (local.set $rest (call $before_last_piece (local.get $size)))
    (call $from_guest (i32.add (local.get $place) (local.get $rest)) (i32.add (local.get $address) (local.get $rest))
      (i32.sub (local.get $size) (local.get $rest)))
    (br_if $next (local.tee $size (local.get $rest)))))

(func $data_to_guest (param $address i32) (param $place i32) (param $size i32)
  (local $rest i32)
  (loop $next
    (local.set $rest (call $before_last_piece (local.get $size)))
    (call $to_guest (i32.add (local.get $address) (local.get $rest)) (i32.add (local.get $place) (local.get $rest))
      (i32.sub (local.get $size) (local.get $rest)))
    (br_if $next (local.tee $size (local.get $rest)))))

;; How many bytes come before the last piece of so many.
(func $before_last_piece (param $size i32) (result i32)
  (select (i32.sub (local.get $size) (global.get $PIECE)) (i32.const 0)
    (i32.gt_u (local.get $size) (global.get $PIECE))))

(func $get_u32 (param $address i32) (result i32)
  (i32.load $guest (local.get $address)))

(func $put_u32 (param $address i32) (param $value i32)
  (i32.store $guest (local.get $address) (local.get $value)))

(func $put_u64 (param $address i32) (param $value i64)
  (i64.store $guest (local.get $address) (local.get $value)))

;; Copies a path of the guest's in, which begins at a descriptor; returns 0 or an errno;
;; and looks up whether it may be named.
(func $take_path (param $number i32) (param $place i32) (param $fd i32) (param $address i32) (param $size i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $take_text (local.get $place) (local.get $fd) (local.get $address) (local.get $size)))
    (then (return (local.get $errno))))
  (call $permit (local.get $number) (local.get $place) (local.get $fd) (local.get $size)))

;; The same of what a link leads to, which is no path yet.
(func $take_text (param $place i32) (param $fd i32) (param $address i32) (param $size i32) (result i32)
  (call $check (local.get $address) (i64.extend_i32_u (local.get $size)) (i32.const 1))
  (i32.store16 $state (call $start_of (local.get $place)) (call $mount_number (local.get $fd)))
  (if (i32.gt_u (local.get $size) (global.get $PATH_MAX)) (then (return (global.get $ENAMETOOLONG))))
  (call $from_guest (local.get $place) (local.get $address) (local.get $size))
  (global.get $SUCCESS))

;; The first buffer that is not empty: native WASI reads into that one, or writes from it. Its address and length; both
;; are 0 where there is none, which only the length tells.
(func $first_buffer (param $iovs i32) (param $count i32) (result i32 i32)
  (local $size i32)
  (if (local.get $count)
    (then
      (call $check (local.get $iovs) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 3)) (i32.const 4))))
  (block $none
    (loop $next
      (br_if $none (i32.eqz (local.get $count)))
      (if (local.tee $size (call $get_u32 (i32.add (local.get $iovs) (i32.const 4))))
        (then
          (local.set $iovs (call $get_u32 (local.get $iovs)))
          (call $check (local.get $iovs) (i64.extend_i32_u (local.get $size)) (i32.const 1))
          (return (local.get $iovs) (local.get $size))))
      (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
  (i32.const 0) (i32.const 0))

;; -- counters and quotas ----------------------------------------------------------------------------------------------

;; Adds to a counter.
(func $add (param $counter i32) (param $amount i64)
  (i64.store $state (local.get $counter) (i64.add (i64.load $state (local.get $counter)) (local.get $amount))))

;; Keeps the larger of a counter and a value.
(func $keep_max (param $counter i32) (param $value i64)
  (if (i64.gt_u (local.get $value) (i64.load $state (local.get $counter)))
    (then (i64.store $state (local.get $counter) (local.get $value)))))

(func $least (param $one i64) (param $other i64) (result i64)
  (select (local.get $one) (local.get $other) (i64.lt_u (local.get $one) (local.get $other))))

;; A sum, at most 2^64-1.
(func $sum (param $one i64) (param $other i64) (result i64)
  (local $sum i64)
  (local.set $sum (i64.add (local.get $one) (local.get $other)))
  (select (i64.const -1) (local.get $sum) (i64.lt_u (local.get $sum) (local.get $one))))

;; A difference, at least 0.
(func $beyond (param $one i64) (param $other i64) (result i64)
  (select (i64.sub (local.get $one) (local.get $other)) (i64.const 0)
    (i64.gt_u (local.get $one) (local.get $other))))

;; Takes from what is left of a quota; it never goes below 0, and 2^64-1 is never used up. Returns what it took, for
;; $refund.
(func $spend (param $left i32) (param $amount i64) (result i64)
  (local $spent i64)
  (local.set $spent (call $least (local.get $amount) (i64.load $state (local.get $left))))
  (if (i64.ne (i64.load $state (local.get $left)) (i64.const -1))
    (then (call $add (local.get $left) (i64.sub (i64.const 0) (local.get $spent)))))
  (local.get $spent))

;; Gives back what was taken beyond what was used.
(func $refund (param $left i32) (param $spent i64) (param $used i64)
  (if (i64.ne (i64.load $state (local.get $left)) (i64.const -1))
    (then (call $add (local.get $left) (call $beyond (local.get $spent) (local.get $used))))))

;; Whether a quota covers so much; if not, the errno, or 0 where the policy only audits.
(func $check_quota (param $kind i32) (param $number i32) (param $left i32) (param $limit i32) (param $amount i64)
  (result i32)
  (if (i64.eq (i64.load $state (local.get $limit)) (i64.const -1)) (then (return (global.get $SUCCESS))))
  (if (i64.le_u (local.get $amount) (i64.load $state (local.get $left))) (then (return (global.get $SUCCESS))))
  (call $refuse (local.get $kind) (local.get $number) (i64.load $state (local.get $limit))
    (call $sum (i64.sub (i64.load $state (local.get $limit)) (i64.load $state (local.get $left))) (local.get $amount))
    (global.get $EDQUOT)))

;; Makes $state reach up to an address, or ends the run.
(func $reserve (param $end i64)
  (local $missing i64)
  (if (i64.gt_s
        (local.tee $missing (i64.sub (local.get $end)
                                     (i64.shl (i64.extend_i32_u (memory.size $state)) (i64.const 16))))
        (i64.const 0))
    (then
      (if (i32.eq (i32.const -1)
                  (memory.grow $state (i32.wrap_i64 (i64.shr_u (i64.add (local.get $missing) (i64.const 65535))
                                                               (i64.const 16)))))
        (then (call $end_run (global.get $STOP_HOST_MEMORY)))))))

;; Where so many bytes can stand on their way to native WASI or from it.
(func $io_buffer (param $size i32) (result i32)
  (call $reserve (i64.add (i64.load32_u $state (global.get $scratch)) (i64.extend_i32_u (local.get $size))))
  (i32.load $state (global.get $scratch)))

;; Ends the run for a reason of the guard's. The host sees the trap and reads why.
(func $end_run (param $reason i32)
  (i32.store $state (global.get $stop) (local.get $reason))
  (unreachable))

;; -- waiting, and rates -----------------------------------------------------------------------------------------------

;; Halts the guest until a reason holds: its stack is left as it is, and no thread is held. The host may wake it early, so
;; who waits looks again. What a reason needs is written down before.
(func $wait (param $number i32) (param $reason i32)
  (i32.store $state (global.get $wait_call) (local.get $number))
  (i32.store $state (global.get $wait_reason) (local.get $reason))
  (drop (call $native.poll_oneoff (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
  (i32.store $state (global.get $wait_reason) (i32.const 0)))

;; Holds a rate. Tokens are what may go at once: the host adds to them as time goes by, up to a second's worth. Waits
;; until there are as many as are wanted, or a hundredth of a second's worth, whichever is less; or refuses, as the policy
;; says. Takes none.
(func $await_tokens (param $tokens i32) (param $rate i32) (param $wanted i64) (param $kind i32) (param $number i32)
  (result i32)
  (local $each_second i64) (local $enough i64)
  (local.set $each_second (i64.load $state (local.get $rate)))
  (if (i64.eq (local.get $each_second) (i64.const -1)) (then (return (global.get $SUCCESS))))
  (local.set $enough
    (call $least (local.get $wanted)
      (select (i64.const 1) (i64.add (i64.div_u (local.get $each_second) (i64.const 100)) (i64.const 1))
        (i32.eq (i32.load $state (global.get $on_rate)) (global.get $REFUSE)))))
  (if (i64.ge_u (i64.load $state (local.get $tokens)) (local.get $enough)) (then (return (global.get $SUCCESS))))
  ;; The host may not have looked for a while.
  (call $wait (local.get $number) (global.get $FOR_NOW))
  (if (i64.ge_u (i64.load $state (local.get $tokens)) (local.get $enough)) (then (return (global.get $SUCCESS))))
  (if (i32.eq (i32.load $state (global.get $on_rate)) (global.get $REFUSE))
    (then
      (return
        (call $refuse (local.get $kind) (local.get $number) (local.get $each_second)
          (i64.add (local.get $each_second) (i64.const 1)) (global.get $EAGAIN)))))
  (call $record (local.get $kind) (local.get $number) (i32.const 0) (i32.const 0) (local.get $each_second)
    (i64.add (local.get $each_second) (i64.const 1)) (global.get $AUDIT) (global.get $SUCCESS))
  (loop $again
    (i32.store $state (global.get $wait_bucket) (local.get $tokens))
    (i64.store $state (global.get $wait_amount) (local.get $enough))
    (call $wait (local.get $number) (global.get $FOR_TOKENS))
    (br_if $again (i64.lt_u (i64.load $state (local.get $tokens)) (local.get $enough))))
  (global.get $SUCCESS))

;; How many of the wanted bytes may go at once, after $await_tokens; all of them where the policy only audits.
(func $at_once (param $tokens i32) (param $wanted i32) (result i32)
  (local $now i64)
  (local.set $now (i64.load $state (local.get $tokens)))
  (if (i64.eqz (local.get $now)) (then (return (local.get $wanted))))
  (i32.wrap_i64 (call $least (local.get $now) (i64.extend_i32_u (local.get $wanted)))))

;; -- entering a call ----------------------------------------------------------------------------------------------------

;; Every call begins here. Counts it; returns 0, or the errno with which the policy refuses it. Limits on the number of
;; calls are looked at only when the credit is used up.
(func $enter (param $number i32) (result i32)
  (local $slot i32) (local $credit i64) (local $errno i32)
  (local.set $slot (i32.add (global.get $calls) (i32.shl (local.get $number) (i32.const 3))))
  (i64.store $state (local.get $slot) (i64.add (i64.load $state (local.get $slot)) (i64.const 1)))
  (if (i64.eqz (local.tee $credit (i64.load $state (global.get $credit))))
    (then
      (if (local.tee $errno (call $renew_credit (local.get $number))) (then (return (local.get $errno))))
      (local.set $credit (i64.load $state (global.get $credit)))))
  (i64.store $state (global.get $credit) (i64.sub (local.get $credit) (i64.const 1)))
  (if (local.tee $errno (i32.load8_u $state (i32.add (global.get $rules) (local.get $number))))
    (then
      (return (call $refuse (global.get $KIND_call) (local.get $number) (i64.const 0) (i64.const 0) (local.get $errno)))))
  (global.get $SUCCESS))

;; Counts a call that is not subject to any limit.
(func $count (param $number i32)
  (call $add (i32.add (global.get $calls) (i32.shl (local.get $number) (i32.const 3))) (i64.const 1)))

;; Waits for tokens, looks at the limit, and sets how many calls may be made until they are looked at again.
(func $renew_credit (param $number i32) (result i32)
  (local $errno i32) (local $granted i64)
  (if (local.tee $errno
        (call $await_tokens (global.get $call_tokens) (global.get $call_rate) (i64.const -1)
          (global.get $KIND_call_rate) (local.get $number)))
    (then (return (local.get $errno))))
  (if (i64.eqz (i64.load $state (global.get $calls_left)))
    (then
      (if (local.tee $errno
            (call $refuse (global.get $KIND_calls) (local.get $number) (i64.load $state (global.get $calls_limit))
              (call $sum (i64.load $state (global.get $calls_limit))
                (i64.add (i64.load $state (global.get $calls_over)) (i64.const 1)))
              (global.get $EPERM)))
        (then (return (local.get $errno))))
      (call $add (global.get $calls_over) (i64.const 1))))
  (local.set $granted
    (call $least (i64.load $state (global.get $calls_left)) (i64.load $state (global.get $call_tokens))))
  ;; Where the policy only audits, one at a time.
  (if (i64.eqz (local.get $granted)) (then (local.set $granted (i64.const 1))))
  (drop (call $spend (global.get $calls_left) (local.get $granted)))
  (drop (call $spend (global.get $call_tokens) (local.get $granted)))
  (i64.store $state (global.get $credit) (local.get $granted))
  (global.get $SUCCESS))
