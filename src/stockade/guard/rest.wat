;; Processes, randomness, scheduling, sockets, and functions of the embedder.

;; -- processes, randomness, scheduling ------------------------------------------------------------------------------

;; Ends the run by a trap, with the code noted where only the guard can write: every code is passed on as it is. Leaving
;; is never refused.
(func (export "proc_exit") (param $code i32)
  (call $count (global.get $N.proc_exit))
  (i32.store $state (global.get $exit_code) (local.get $code))
  (i32.store $state (global.get $exited) (i32.const 1))
  (unreachable))

(func (export "proc_raise") (param $signal i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.proc_raise))) (then (return (local.get $errno))))
  (call $native.proc_raise (local.get $signal)))

(func (export "random_get") (param $buffer i32) (param $size i32) (result i32)
  (local $errno i32) (local $part i32) (local $spent i64)
  (if (local.tee $errno (call $enter (global.get $N.random_get))) (then (return (local.get $errno))))
  (if (i32.eqz (local.get $size)) (then (return (global.get $SUCCESS))))
  (call $check (local.get $buffer) (i64.extend_i32_u (local.get $size)) (i32.const 1))
  (if (local.tee $errno
        (call $check_quota (global.get $KIND_random_bytes) (global.get $N.random_get) (global.get $random_left)
          (global.get $random_limit) (i64.extend_i32_u (local.get $size))))
    (then (return (local.get $errno))))
  (local.set $spent (call $spend (global.get $random_left) (i64.extend_i32_u (local.get $size))))
  (call $add (global.get $random) (i64.extend_i32_u (local.get $size)))
  ;; A piece at a time: the loop is where the engine looks up and counts fuel.
  (loop $next
    (local.set $part (local.get $size))
    (if (i32.gt_u (local.get $part) (global.get $PATH_MAX)) (then (local.set $part (global.get $PATH_MAX))))
    (if (i32.load $state (global.get $random_mode))
      (then (call $seeded (global.get $path) (local.get $part)))
      (else
        (if (local.tee $errno (call $native.random_get (global.get $path) (local.get $part)))
          (then (return (local.get $errno))))))
    (call $to_guest (local.get $buffer) (global.get $path) (local.get $part))
    (local.set $buffer (i32.add (local.get $buffer) (local.get $part)))
    (br_if $next (local.tee $size (i32.sub (local.get $size) (local.get $part)))))
  (global.get $SUCCESS))

;; SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), eight bytes a step, lowest
;; first; what is left of the last step is dropped. The place has room for whole steps.
(func $seeded (param $place i32) (param $size i32)
  (local $z i64) (local $end i32)
  (local.set $end (i32.add (local.get $place) (local.get $size)))
  (loop $next
    (local.set $z (i64.add (i64.load $state (global.get $random_state)) (i64.const 0x9e3779b97f4a7c15)))
    (i64.store $state (global.get $random_state) (local.get $z))
    (local.set $z
      (i64.mul (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 30))) (i64.const 0xbf58476d1ce4e5b9)))
    (local.set $z
      (i64.mul (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 27))) (i64.const 0x94d049bb133111eb)))
    (i64.store $state (local.get $place) (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 31))))
    (br_if $next (i32.lt_u (local.tee $place (i32.add (local.get $place) (i32.const 8))) (local.get $end)))))

(func (export "sched_yield") (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.sched_yield))) (then (return (local.get $errno))))
  (call $native.sched_yield))

;; -- sockets: there are none in preview 1 that a guest could open, and the policy refuses these ------------------------

;; What a call on a socket says where it is not refused: nothing that is open is one. Flags that there are not trap, as
;; with native WASI.
(func $no_socket (param $number i32) (param $fd i32) (param $flags i32) (param $most i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (local.get $number))) (then (return (local.get $errno))))
  (if (i32.gt_u (local.get $flags) (local.get $most)) (then (unreachable)))
  (select (global.get $EBADF) (global.get $ENOTSOCK)
    (i32.eq (call $kind (local.get $fd)) (global.get $CLOSED))))

(func (export "sock_accept") (param $fd i32) (param $flags i32) (param $result i32) (result i32)
  (call $no_socket (global.get $N.sock_accept) (local.get $fd) (local.get $flags) (i32.const 31)))

(func (export "sock_recv") (param $fd i32) (param $iovs i32) (param $count i32) (param $flags i32) (param $size i32)
  (param $result i32) (result i32)
  (call $no_socket (global.get $N.sock_recv) (local.get $fd) (local.get $flags) (i32.const 3)))

(func (export "sock_send") (param $fd i32) (param $iovs i32) (param $count i32) (param $flags i32) (param $size i32)
  (result i32)
  (call $no_socket (global.get $N.sock_send) (local.get $fd) (local.get $flags) (i32.const 0xffff)))

(func (export "sock_shutdown") (param $fd i32) (param $how i32) (result i32)
  (call $no_socket (global.get $N.sock_shutdown) (local.get $fd) (local.get $how) (i32.const 3)))

;; -- functions of the embedder -----------------------------------------------------------------------------------------

;; A guest calls such a function by halting. For each that it imports, the weaver makes a function in its place (see
;; _host_calls.py), which has the call counted by $host_call, puts the arguments into $mailbox and asks $host_park to halt;
;; when the host has put the results there, it takes them out. Nothing of it is in reach of the guest, and the host reads
;; each number once.
;;
;; $mailbox: what is said, u32; pages of the guest's memory, u32; then values, 8 bytes each, a v128 in two. The guest says
;; which function it calls, a number from 1 on, or $HOST_RETURNED: a function of the guest that the host had called has
;; put its results there. The host says 0: the results are there; $HOST_END: the run is over; or $HOST_EXPORT and the
;; number of an export that is to be called with what is there. What the guest says is more than 0, and what the host says
;; is not, as signed numbers.

;; Before a function that the embedder lends. It has no errno to be refused with, so that beyond a limit the run ends.
(func (export "host_call")
  (if (call $enter (global.get $HOST)) (then (call $end_run (global.get $STOP_DENIED)))))

;; Halts the guest until the host has said something, and returns that.
(func (export "host_park") (param $said i32) (result i32)
  (i32.store $state (global.get $mailbox) (local.get $said))
  (i32.store $state offset=4 (global.get $mailbox) (memory.size $guest))
  (loop $again
    (drop (call $native.poll_oneoff (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
    (br_if $again (i32.gt_s (i32.load $state (global.get $mailbox)) (i32.const 0))))
  (local.set $said (i32.load $state (global.get $mailbox)))
  ;; A wait of the guest's own must not be taken for this.
  (i32.store $state (global.get $mailbox) (i32.const 0))
  (if (i32.eq (local.get $said) (global.get $HOST_END)) (then (unreachable)))
  (local.get $said))
