;; The trace: an entry for each call, in a ring that the host empties while the guest is halted.
;;
;; Nothing of this is woven into a guest that is not traced. In one that is, the weaver puts a function of its own before
;; each function that the guest may call (see _trace_code.py): it begins an entry, copies arguments, makes the call, copies
;; answers, and says that the call has returned. It changes nothing for the guest but time and fuel: what it reads of the
;; guest's memory it reads only where that is in reach, and it writes nothing there.
;;
;; The engine may halt the guest where a function or a loop begins, and then the host empties the ring. So an entry is
;; counted in $trace_written when all of its beginning is there. A call whose beginning the host has taken meanwhile has its
;; rest in an entry of its own. Where the guest ends in a call, its beginning tells of it.

;; The place for one more entry; 0 where there is none. Waits for room where it is to.
(func $trace_free (param $number i32) (result i32)
  (loop $again
    (if (i64.ge_u
          (i64.sub (i64.load $state (global.get $trace_written)) (i64.load $state (global.get $trace_read)))
          (i64.load32_u $state (global.get $trace_slots)))
      (then
        (if (i32.eqz (i32.load $state (global.get $trace_waits)))
          (then
            (call $add (global.get $trace_lost) (i64.const 1))
            (return (i32.const 0))))
        ;; The host empties the ring whenever it looks.
        (call $wait (local.get $number) (global.get $FOR_NOW))
        (br $again))))
  (i32.add (i32.load $state (global.get $trace))
    (i32.mul (i32.load $state (global.get $trace_slot_size))
      (i32.and
        (i32.load $state (global.get $trace_written))
        (i32.sub (i32.load $state (global.get $trace_slots)) (i32.const 1))))))

;; Begins an entry; returns its place, or 0 where there is none. It is not counted yet. Calls within the guard are written
;; out here and below where each call of a guest takes this way.
(func (export "trace_begin") (param $number i32) (param $fd i32) (result i32)
  (local $slot i32) (local $rule i32) (local $written i64)
  (if (i32.eqz (local.tee $slot (call $trace_free (local.get $number)))) (then (return (i32.const 0))))
  (local.set $written (i64.load $state (global.get $trace_written)))
  (i64.store $state offset=8 (local.get $slot) (local.get $written))
  (i64.store $state offset=24 (local.get $slot) (i64.const 0))
  (i64.store $state offset=120 (local.get $slot) (i64.const 0))
  (if (i32.ne
        (local.tee $rule (i32.load8_u $state (i32.add (global.get $trace_rules) (local.get $number))))
        (global.get $TRACE_PLAIN))
    (then
      ;; To read the clock takes longer than to write to stdout or stderr, as descriptors 1 and 2 are, mostly.
      (if (i32.or
            (i32.eq (local.get $rule) (global.get $TRACE_TIMED))
            (i32.gt_u (i32.sub (local.get $fd) (i32.const 1)) (i32.const 1)))
        (then
          (i64.store $state (local.get $slot)
            (i64.extend_i32_u
              (i32.or (local.get $number) (i32.shl (global.get $TRACE_HAS_TIME) (i32.const 24)))))
          (i64.store $state offset=16 (local.get $slot) (call $trace_time))
          (return (local.get $slot))))))
  (i64.store $state (local.get $slot) (i64.extend_i32_u (local.get $number)))
  ;; As of the last time that anybody looked.
  (i64.store $state offset=16 (local.get $slot)
    (select (i64.load $state (global.get $trace_now)) (i64.load $state (global.get $host_now))
      (i64.gt_u (i64.load $state (global.get $trace_now)) (i64.load $state (global.get $host_now)))))
  (local.get $slot))

(func $trace_time (result i64)
  (i64.store $state (global.get $trace_now) (call $native_time (global.get $MONOTONIC)))
  (i64.load $state (global.get $trace_now)))

;; Begins the rest of an entry whose beginning the host has taken; returns its place, or 0.
(func (export "trace_rest") (param $number i32) (param $sequence i64) (result i32)
  (local $slot i32)
  (if (i32.eqz (local.tee $slot (call $trace_free (local.get $number)))) (then (return (i32.const 0))))
  (i32.store $state (local.get $slot)
    (i32.or
      (i32.or (local.get $number) (i32.shl (global.get $TRACE_REST) (i32.const 8)))
      ;; That it was about stdout is not known any more; the host knows whether there is a time to compare with.
      (select (i32.const 0) (i32.shl (global.get $TRACE_HAS_TIME) (i32.const 24))
        (i32.le_u (i32.load8_u $state (i32.add (global.get $trace_rules) (local.get $number)))
          (global.get $TRACE_PLAIN)))))
  (i64.store $state offset=8 (local.get $slot) (local.get $sequence))
  (i64.store $state offset=120 (local.get $slot) (i64.const 0))
  (local.get $slot))

;; The call has returned. From where it is seen whether the host has taken the beginning, no call and no loop stands between.
(func (export "trace_done") (param $number i32) (param $slot i32) (param $sequence i64) (param $errno i32)
  (local $end i64) (local $new i32)
  (if (i32.and (i32.load8_u $state offset=3 (local.get $slot)) (global.get $TRACE_HAS_TIME))
    (then (local.set $end (call $trace_time))))
  (if (i32.and
        (i32.eqz (i32.load8_u $state offset=1 (local.get $slot)))
        (i64.gt_u (i64.load $state (global.get $trace_read)) (local.get $sequence)))
    (then
      ;; Just now: what was in its place is still there.
      (if (i32.eqz (local.tee $new (call $trace_free (local.get $number)))) (then (return)))
      (memory.copy $state $state (local.get $new) (local.get $slot)
        (i32.load $state (global.get $trace_slot_size)))
      (local.set $slot (local.get $new))
      (i32.store8 $state offset=1 (local.get $slot) (global.get $TRACE_REST))))
  (i32.store $state offset=4 (local.get $slot) (local.get $errno))
  (i64.store $state offset=24 (local.get $slot) (local.get $end))
  (if (i32.load8_u $state offset=1 (local.get $slot))
    (then
      (i64.store $state (global.get $trace_written)
        (i64.add (i64.load $state (global.get $trace_written)) (i64.const 1))))
    (else (i32.store8 $state offset=1 (local.get $slot) (global.get $TRACE_RETURNED)))))

;; -- what a call names and answers ------------------------------------------------------------------------------------

;; Whether all of these bytes are in the guest's memory.
(func $trace_reaches (param $address i32) (param $size i64) (result i32)
  (i64.le_u (i64.add (i64.extend_i32_u (local.get $address)) (local.get $size))
            (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16))))

(func $trace_fault (param $slot i32) (param $which i32)
  (i32.store8 $state offset=3 (local.get $slot)
    (i32.or (i32.load8_u $state offset=3 (local.get $slot)) (i32.shl (i32.const 1) (local.get $which)))))

;; Copies the beginning of a text of the guest's: the first or the second of the entry.
(func (export "trace_text") (param $slot i32) (param $which i32) (param $address i32) (param $size i32)
  (local $strings i32)
  (local.set $strings (i32.load $state (global.get $trace_strings)))
  (i32.store $state offset=120
    (i32.add (local.get $slot) (i32.shl (local.get $which) (i32.const 2))) (local.get $size))
  (if (call $trace_reaches (local.get $address) (i64.extend_i32_u (local.get $size)))
    (then
      (call $trace_copy
        (i32.add (i32.add (local.get $slot) (global.get $TRACE_TEXTS))
          (i32.mul (local.get $which) (local.get $strings)))
        (local.get $address)
        (select (local.get $size) (local.get $strings) (i32.lt_u (local.get $size) (local.get $strings)))))
    (else (call $trace_fault (local.get $slot) (local.get $which)))))

;; The same of what stands in buffers, of which so many bytes at most.
(func (export "trace_data") (param $slot i32) (param $which i32) (param $iovs i32) (param $count i32) (param $most i32)
  (local $place i32) (local $left i32) (local $size i32) (local $sum i32) (local $address i32) (local $end i64)
  ;; Such a call is refused, or moves nothing.
  (if (i32.gt_u (i32.sub (local.get $count) (i32.const 1)) (global.get $IOV_MAX)) (then (return)))
  (local.set $end (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
  (local.set $left (i32.load $state (global.get $trace_strings)))
  (local.set $place
    (i32.add (i32.add (local.get $slot) (global.get $TRACE_TEXTS)) (i32.mul (local.get $which) (local.get $left))))
  (local.set $left
    (select (local.get $most) (local.get $left) (i32.lt_u (local.get $most) (local.get $left))))
  (block $done
    (block $fault
      (br_if $fault
        (i64.gt_u
          (i64.add (i64.extend_i32_u (local.get $iovs))
            (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 3)))
          (local.get $end)))
      (loop $next
        (local.set $address (i32.load $guest (local.get $iovs)))
        (local.set $size (i32.load $guest offset=4 (local.get $iovs)))
        (br_if $fault
          (i64.gt_u (i64.add (i64.extend_i32_u (local.get $address)) (i64.extend_i32_u (local.get $size)))
            (local.get $end)))
        ;; What does not fit a count is not written.
        (br_if $done (i32.lt_u (i32.add (local.get $sum) (local.get $size)) (local.get $sum)))
        (local.set $sum (i32.add (local.get $sum) (local.get $size)))
        (local.set $size
          (select (local.get $size) (local.get $left) (i32.lt_u (local.get $size) (local.get $left))))
        (call $trace_copy (local.get $place) (local.get $address) (local.get $size))
        (local.set $place (i32.add (local.get $place) (local.get $size)))
        (local.set $left (i32.sub (local.get $left) (local.get $size)))
        (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
        (br_if $done (i32.eqz (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
        (br_if $next (local.get $left)))
      (br $done))
    (call $trace_fault (local.get $slot) (local.get $which)))
  (i32.store $state offset=120
    (i32.add (local.get $slot) (i32.shl (local.get $which) (i32.const 2)))
    (select (local.get $sum) (local.get $most) (i32.lt_u (local.get $sum) (local.get $most)))))

;; Copies bytes that are in reach. What is short is copied by hand, which is quicker than to ask the engine.
(func $trace_copy (param $place i32) (param $address i32) (param $size i32)
  (if (i32.gt_u (local.get $size) (i32.const 64))
    (then
      (memory.copy $state $guest (local.get $place) (local.get $address) (local.get $size))
      (return)))
  (block $rest
    (loop $next
      (br_if $rest (i32.lt_u (local.get $size) (i32.const 16)))
      (i64.store $state (local.get $place) (i64.load $guest (local.get $address)))
      (i64.store $state offset=8 (local.get $place) (i64.load $guest offset=8 (local.get $address)))
      (local.set $place (i32.add (local.get $place) (i32.const 16)))
      (local.set $address (i32.add (local.get $address) (i32.const 16)))
      (local.set $size (i32.sub (local.get $size) (i32.const 16)))
      (br $next)))
  (block $done
    (loop $next
      (br_if $done (i32.eqz (local.get $size)))
      (i32.store8 $state (local.get $place) (i32.load8_u $guest (local.get $address)))
      (local.set $place (i32.add (local.get $place) (i32.const 1)))
      (local.set $address (i32.add (local.get $address) (i32.const 1)))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (br $next))))

;; Copies an answer, the first or the second, from where the call has put it.
(func (export "trace_answer32") (param $slot i32) (param $which i32) (param $address i32)
  (if (call $trace_reaches (local.get $address) (i64.const 4))
    (then
      (i64.store $state offset=104
        (i32.add (local.get $slot) (i32.shl (local.get $which) (i32.const 3)))
        (i64.load32_u $guest (local.get $address)))
      (i32.store8 $state offset=2 (local.get $slot)
        (i32.or (i32.load8_u $state offset=2 (local.get $slot)) (i32.shl (i32.const 1) (local.get $which)))))))

(func (export "trace_answer64") (param $slot i32) (param $which i32) (param $address i32)
  (if (call $trace_reaches (local.get $address) (i64.const 8))
    (then
      (i64.store $state offset=104
        (i32.add (local.get $slot) (i32.shl (local.get $which) (i32.const 3)))
        (i64.load $guest (local.get $address)))
      (i32.store8 $state offset=2 (local.get $slot)
        (i32.or (i32.load8_u $state offset=2 (local.get $slot)) (i32.shl (i32.const 1) (local.get $which)))))))
