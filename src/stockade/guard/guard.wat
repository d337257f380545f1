;; The guard: the policy, as WebAssembly.
;;
;; This module is woven into every guest (see _weave.py). Each call that the guest makes to WASI lands in the function
;; of that name here, which counts it, asks the policy, and then passes it on to native WASI, serves it from the guard's
;; own memory, or refuses it. memory.grow and table.grow of the guest land in the functions at the end.
;;
;; Two memories are in reach. $guest is the guest's own: everything in it may be hostile, every pointer into it is the
;; guest's choice, and an access beyond its end traps, as WASI asks. $state is the guard's: no instruction of the guest
;; can name it, so what stands there is the truth of the run. Nothing is read from $guest twice where it matters.
;;
;; The host writes the policy block into $state before the first instruction of the guest runs, and reads the counters
;; from it afterwards. The table below is the layout: each line is the address of a field. Python reads the addresses
;; from here (the part of the export's name after the colon is the field's type), and the weaver puts the number in the
;; place of every global.get, so the names cost nothing.
(module $guard

;; -- native WASI ----------------------------------------------------------------------------------------------------

(import "wasi_snapshot_preview1" "clock_res_get" (func $native.clock_res_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "clock_time_get" (func $native.clock_time_get (param i32 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_advise" (func $native.fd_advise (param i32 i64 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_allocate" (func $native.fd_allocate (param i32 i64 i64) (result i32)))
(import "wasi_snapshot_preview1" "fd_close" (func $native.fd_close (param i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_datasync" (func $native.fd_datasync (param i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_fdstat_get" (func $native.fd_fdstat_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_fdstat_set_flags" (func $native.fd_fdstat_set_flags (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_fdstat_set_rights" (func $native.fd_fdstat_set_rights (param i32 i64 i64) (result i32)))
(import "wasi_snapshot_preview1" "fd_filestat_get" (func $native.fd_filestat_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_filestat_set_size" (func $native.fd_filestat_set_size (param i32 i64) (result i32)))
(import "wasi_snapshot_preview1" "fd_filestat_set_times" (func $native.fd_filestat_set_times (param i32 i64 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_pread" (func $native.fd_pread (param i32 i32 i32 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_prestat_get" (func $native.fd_prestat_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_prestat_dir_name" (func $native.fd_prestat_dir_name (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_pwrite" (func $native.fd_pwrite (param i32 i32 i32 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_read" (func $native.fd_read (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_readdir" (func $native.fd_readdir (param i32 i32 i32 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_renumber" (func $native.fd_renumber (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_seek" (func $native.fd_seek (param i32 i64 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_sync" (func $native.fd_sync (param i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_tell" (func $native.fd_tell (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_write" (func $native.fd_write (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_create_directory" (func $native.path_create_directory (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_filestat_get" (func $native.path_filestat_get (param i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_filestat_set_times" (func $native.path_filestat_set_times (param i32 i32 i32 i32 i64 i64 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_link" (func $native.path_link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_open" (func $native.path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_readlink" (func $native.path_readlink (param i32 i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_remove_directory" (func $native.path_remove_directory (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_rename" (func $native.path_rename (param i32 i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_symlink" (func $native.path_symlink (param i32 i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "path_unlink_file" (func $native.path_unlink_file (param i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "poll_oneoff" (func $native.poll_oneoff (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "proc_raise" (func $native.proc_raise (param i32) (result i32)))
(import "wasi_snapshot_preview1" "random_get" (func $native.random_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "sched_yield" (func $native.sched_yield (result i32)))

;; -- the guest, and the guard's own memory --------------------------------------------------------------------------

(import "guest" "memory" (memory $guest 0))
(import "guest" "funcref_table" (table $guest.funcrefs 0 funcref))
(import "guest" "externref_table" (table $guest.externrefs 0 externref))
(memory $state (export "memory") 2)

;; -- layout of $state: descriptors --------------------------------------------------------------------------------

(global $kinds         (export "kinds:u8[4096]")    i32 (i32.const 0))    ;; what became of each descriptor, see below

;; -- layout of $state: the policy block, written by the host --------------------------------------------------------

(global $block         (export "block:u8")          i32 (i32.const 4096)) ;; the host writes and reads from here
(global $memory_limit  (export "memory_limit:u64")  i32 (i32.const 4096))    ;; bytes that all memories and tables may have
(global $table_limit   (export "table_limit:u64")   i32 (i32.const 4112))   ;; elements that all tables may have together
(global $slice         (export "slice:u64")         i32 (i32.const 4128))   ;; longest wait at a stretch, nanoseconds
(global $stop_on_memory (export "stop_on_memory:u32") i32 (i32.const 4136)) ;; 1: refused growth ends the run
(global $scratch       (export "scratch:u32")       i32 (i32.const 4140))   ;; where free room begins, above everything else
(global $stdin         (export "stdin:u32")         i32 (i32.const 4144))   ;; where stdin's bytes stand
(global $stdin_size    (export "stdin_size:u32")    i32 (i32.const 4148))   ;; how many there are
(global $args          (export "args:u32")          i32 (i32.const 4152))   ;; arguments, each ended by a zero byte
(global $args_count    (export "args_count:u32")    i32 (i32.const 4156))
(global $args_size     (export "args_size:u32")     i32 (i32.const 4160))   ;; their bytes in all, zero bytes included
(global $environ       (export "environ:u32")       i32 (i32.const 4164))   ;; NAME=value, each ended by a zero byte
(global $environ_count (export "environ_count:u32") i32 (i32.const 4168))
(global $environ_size  (export "environ_size:u32")  i32 (i32.const 4172))
;; An output stream is five fields. Its first cap bytes land in [base, base+cap) in order; of what follows, the part
;; [head, cap) keeps the newest. So the beginning and the end of the output are kept, and total tells how much there was.
(global $stdout        (export "stdout:stream")     i32 (i32.const 4176))
(global $stderr        (export "stderr:stream")     i32 (i32.const 4200))
(global $rules         (export "rules:u8[64]")      i32 (i32.const 4224))  ;; by call number: 0, or the errno that refuses it

;; -- layout of $state: what happened, written here ------------------------------------------------------------------

(global $exited        (export "exited:u32")        i32 (i32.const 4288))  ;; 1: the guest called proc_exit
(global $exit_code     (export "exit_code:u32")     i32 (i32.const 4292))  ;; with this
(global $stop          (export "stop:u32")          i32 (i32.const 4296))  ;; why the guard ended the run, see below
(global $stdin_read    (export "stdin_read:u32")    i32 (i32.const 4300))  ;; bytes of stdin the guest has taken
(global $memory_refusals (export "memory_refusals:u64") i32 (i32.const 4304)) ;; growths refused by memory_limit
(global $memory_asked  (export "memory_asked:u64")  i32 (i32.const 4312))  ;; the most bytes that were asked for in vain
(global $table_refusals (export "table_refusals:u64") i32 (i32.const 4320)) ;; growths refused by table_limit
(global $table_asked   (export "table_asked:u64")   i32 (i32.const 4328))  ;; the most elements asked for in vain
(global $idle          (export "idle:u64")          i32 (i32.const 4336))  ;; nanoseconds spent waiting in poll_oneoff
(global $read          (export "read:u64")          i32 (i32.const 4344))  ;; bytes read from files
(global $written       (export "written:u64")       i32 (i32.const 4352))  ;; bytes written to files
(global $random        (export "random:u64")        i32 (i32.const 4360))  ;; bytes of randomness handed out
(global $opened        (export "opened:u64")        i32 (i32.const 4368))  ;; files and folders opened
(global $open_now      (export "open_now:u64")      i32 (i32.const 4376))  ;; of these, open now
(global $open_peak     (export "open_peak:u64")     i32 (i32.const 4384))  ;; and the most at any time
(global $created       (export "created:u64")       i32 (i32.const 4392))  ;; files, folders and links created
(global $deleted       (export "deleted:u64")       i32 (i32.const 4400))  ;; files and folders removed
(global $memory_used   (export "memory_used:u64")   i32 (i32.const 4408)) ;; bytes that memories and tables have (never shrinks: the peak)
(global $table_used    (export "table_used:u64")    i32 (i32.const 4416)) ;; elements that tables have; the host writes both first
(global $calls         (export "calls:u64[46]")     i32 (i32.const 4424))  ;; by call number: how often it was made
(global $denied        (export "denied:u64[46]")    i32 (i32.const 4792))  ;; and how often it was refused
(global $room          (export "room:u8")           i32 (i32.const 5160)) ;; from here on the host places its data

;; Reasons in $stop.
(global $STOP_MEMORY (export "STOP_MEMORY:const") i32 (i32.const 1))     ;; memory growth was refused, policy says stop
(global $STOP_HOST_MEMORY (export "STOP_HOST_MEMORY:const") i32 (i32.const 2)) ;; the host has no memory left for the guard

;; Kinds of descriptors in $kinds. As it was born: 0, 1 and 2 are stdin, stdout and stderr, others are native WASI's.
(global $BORN i32 (i32.const 0))
(global $STDIN i32 (i32.const 1))
(global $STDOUT i32 (i32.const 2))
(global $STDERR i32 (i32.const 3))
(global $FILE i32 (i32.const 4))                                          ;; opened by the guest
(global $CLOSED i32 (i32.const 5))
(global $MAX_DESCRIPTORS (export "MAX_DESCRIPTORS:const") i32 (i32.const 4096))

;; Errno values of WASI.
(global $SUCCESS i32 (i32.const 0))
(global $EEXIST i32 (i32.const 20))
(global $EINVAL i32 (i32.const 28))
(global $EMFILE i32 (i32.const 33))

;; As POSIX: the most buffers that one read or write may name, and a bound like it for one poll.
(global $IOV_MAX (export "IOV_MAX:const") i32 (i32.const 1024))
(global $POLL_MAX (export "POLL_MAX:const") i32 (i32.const 1024))
(global $SUBSCRIPTION_SIZE i32 (i32.const 48))
(global $EVENT_SIZE i32 (i32.const 32))

;; -- helpers --------------------------------------------------------------------------------------------------------

;; Every call begins here. Counts it; returns 0, or the errno with which the policy refuses it.
(func $enter (param $number i32) (result i32)
  (local $errno i32) (local $slot i32)
  (local.set $slot (i32.add (global.get $calls) (i32.shl (local.get $number) (i32.const 3))))
  (i64.store $state (local.get $slot) (i64.add (i64.load $state (local.get $slot)) (i64.const 1)))
  (if (local.tee $errno (i32.load8_u $state (i32.add (global.get $rules) (local.get $number))))
    (then (call $add (i32.add (global.get $denied) (i32.shl (local.get $number) (i32.const 3))) (i64.const 1))))
  (local.get $errno))

;; Adds to a counter.
(func $add (param $counter i32) (param $amount i64)
  (i64.store $state (local.get $counter) (i64.add (i64.load $state (local.get $counter)) (local.get $amount))))

;; Keeps the larger of a counter and a value.
(func $keep_max (param $counter i32) (param $value i64)
  (if (i64.gt_u (local.get $value) (i64.load $state (local.get $counter)))
    (then (i64.store $state (local.get $counter) (local.get $value)))))

;; Traps unless all of these bytes are inside the guest's memory.
(func $check (param $address i32) (param $size i64)
  (if (i64.gt_u (i64.add (i64.extend_i32_u (local.get $address)) (local.get $size))
                (i64.shl (i64.extend_i32_u (memory.size $guest)) (i64.const 16)))
    ;; Two bytes from the last address on are beyond the end of any memory.
    (then (memory.copy $guest $guest (i32.const -1) (i32.const -1) (i32.const 2)))))

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

;; Ends the run for a reason of the guard's. The host sees the trap and reads why.
(func $end_run (param $reason i32)
  (i32.store $state (global.get $stop) (local.get $reason))
  (unreachable))

;; The kind of a descriptor; numbers beyond the table were never given out.
(func $kind (param $fd i32) (result i32)
  (local $kind i32)
  (if (i32.ge_u (local.get $fd) (global.get $MAX_DESCRIPTORS)) (then (return (global.get $CLOSED))))
  (local.set $kind (i32.load8_u $state (i32.add (global.get $kinds) (local.get $fd))))
  (if (i32.and (i32.eqz (local.get $kind)) (i32.le_u (local.get $fd) (i32.const 2)))
    (then (return (i32.add (local.get $fd) (global.get $STDIN)))))
  (local.get $kind))

(func $set_kind (param $fd i32) (param $kind i32)
  (if (i32.lt_u (local.get $fd) (global.get $MAX_DESCRIPTORS))
    (then (i32.store8 $state (i32.add (global.get $kinds) (local.get $fd)) (local.get $kind)))))

;; A descriptor is free again.
(func $forget (param $fd i32)
  (if (i32.eq (call $kind (local.get $fd)) (global.get $FILE))
    (then (call $add (global.get $open_now) (i64.const -1))))
  (call $set_kind (local.get $fd) (global.get $CLOSED)))

;; -- stdin, stdout, stderr ------------------------------------------------------------------------------------------

;; Appends bytes of the guest to a stream: kept up to its cap, then only the newest in the part behind the head.
(func $append (param $stream i32) (param $source i32) (param $size i32)
  (local $base i32) (local $head i32) (local $cap i32) (local $tail i32) (local $total i64) (local $part i32)
  (local $place i32)
  (call $check (local.get $source) (i64.extend_i32_u (local.get $size)))
  (local.set $base (i32.load $state (local.get $stream)))
  (local.set $head (i32.load $state offset=4 (local.get $stream)))
  (local.set $cap (i32.load $state offset=8 (local.get $stream)))
  (local.set $total (i64.load $state offset=16 (local.get $stream)))
  (i64.store $state offset=16 (local.get $stream) (i64.add (local.get $total) (i64.extend_i32_u (local.get $size))))
  ;; In order, while there is room.
  (if (i64.lt_u (local.get $total) (i64.extend_i32_u (local.get $cap)))
    (then
      (local.set $part (i32.sub (local.get $cap) (i32.wrap_i64 (local.get $total))))
      (if (i32.lt_u (local.get $size) (local.get $part)) (then (local.set $part (local.get $size))))
      (local.set $place (i32.add (local.get $base) (i32.wrap_i64 (local.get $total))))
      (call $reserve (i64.extend_i32_u (i32.add (local.get $place) (local.get $part))))
      (memory.copy $state $guest (local.get $place) (local.get $source) (local.get $part))
      (local.set $source (i32.add (local.get $source) (local.get $part)))
      (local.set $size (i32.sub (local.get $size) (local.get $part)))
      (local.set $total (i64.add (local.get $total) (i64.extend_i32_u (local.get $part))))))
  (if (i32.or (i32.eqz (local.get $size)) (i32.eq (local.get $head) (local.get $cap))) (then (return)))
  ;; Then round and round behind the head. Of more than fits there, only the newest is copied.
  (local.set $tail (i32.sub (local.get $cap) (local.get $head)))
  (if (i32.gt_u (local.get $size) (local.get $tail))
    (then
      (local.set $part (i32.sub (local.get $size) (local.get $tail)))
      (local.set $source (i32.add (local.get $source) (local.get $part)))
      (local.set $total (i64.add (local.get $total) (i64.extend_i32_u (local.get $part))))
      (local.set $size (local.get $tail))))
  (local.set $place (i32.add (local.get $head) (i32.wrap_i64
    (i64.rem_u (i64.sub (local.get $total) (i64.extend_i32_u (local.get $head))) (i64.extend_i32_u (local.get $tail))))))
  (local.set $part (i32.sub (local.get $cap) (local.get $place)))
  (if (i32.lt_u (local.get $size) (local.get $part)) (then (local.set $part (local.get $size))))
  (memory.copy $state $guest (i32.add (local.get $base) (local.get $place)) (local.get $source) (local.get $part))
  (memory.copy $state $guest (i32.add (local.get $base) (local.get $head))
    (i32.add (local.get $source) (local.get $part)) (i32.sub (local.get $size) (local.get $part))))

;; fd_write to a captured stream. Stops early, as POSIX lets a write do, before the count would not fit its type.
(func $capture (param $stream i32) (param $iovs i32) (param $count i32) (param $written i32) (result i32)
  (local $sum i32) (local $size i32)
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (call $check (local.get $iovs) (i64.extend_i32_u (i32.shl (local.get $count) (i32.const 3))))
  (call $check (local.get $written) (i64.const 4))
  (block $done
    (loop $next
      (br_if $done (i32.eqz (local.get $count)))
      (local.set $size (i32.load $guest offset=4 (local.get $iovs)))
      (br_if $done (i32.lt_u (i32.add (local.get $sum) (local.get $size)) (local.get $sum)))
      (call $append (local.get $stream) (i32.load $guest (local.get $iovs)) (local.get $size))
      (local.set $sum (i32.add (local.get $sum) (local.get $size)))
      (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
  (i32.store $guest (local.get $written) (local.get $sum))
  (global.get $SUCCESS))

;; fd_read from stdin.
(func $take_stdin (param $iovs i32) (param $count i32) (param $taken i32) (result i32)
  (local $left i32) (local $size i32) (local $sum i32) (local $source i32)
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (call $check (local.get $iovs) (i64.extend_i32_u (i32.shl (local.get $count) (i32.const 3))))
  (call $check (local.get $taken) (i64.const 4))
  (local.set $source (i32.add (i32.load $state (global.get $stdin)) (i32.load $state (global.get $stdin_read))))
  (local.set $left (i32.sub (i32.load $state (global.get $stdin_size)) (i32.load $state (global.get $stdin_read))))
  (block $done
    (loop $next
      (br_if $done (i32.or (i32.eqz (local.get $count)) (i32.eqz (local.get $left))))
      (local.set $size (i32.load $guest offset=4 (local.get $iovs)))
      (if (i32.gt_u (local.get $size) (local.get $left)) (then (local.set $size (local.get $left))))
      (memory.copy $guest $state (i32.load $guest (local.get $iovs)) (local.get $source) (local.get $size))
      (local.set $source (i32.add (local.get $source) (local.get $size)))
      (local.set $left (i32.sub (local.get $left) (local.get $size)))
      (local.set $sum (i32.add (local.get $sum) (local.get $size)))
      (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
  (i32.store $state (global.get $stdin_read) (i32.add (i32.load $state (global.get $stdin_read)) (local.get $sum)))
  (i32.store $guest (local.get $taken) (local.get $sum))
  (global.get $SUCCESS))

;; -- arguments and environment --------------------------------------------------------------------------------------

;; Copies a block of zero-ended strings to the guest, and the address of each.
(func $give_strings (param $source i32) (param $count i32) (param $size i32) (param $pointers i32) (param $buffer i32)
  (local $at i32) (local $end i32)
  (call $check (local.get $pointers) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 2)))
  (memory.copy $guest $state (local.get $buffer) (local.get $source) (local.get $size))
  (local.set $at (local.get $source))
  (local.set $end (i32.add (local.get $source) (local.get $size)))
  (block $done
    (loop $string
      (br_if $done (i32.eq (local.get $at) (local.get $end)))
      (i32.store $guest (local.get $pointers)
        (i32.add (local.get $buffer) (i32.sub (local.get $at) (local.get $source))))
      (local.set $pointers (i32.add (local.get $pointers) (i32.const 4)))
      (loop $byte
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $byte (i32.load8_u $state (i32.sub (local.get $at) (i32.const 1)))))
      (br $string))))

(func (export "args_get") (param $argv i32) (param $buffer i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 0))) (then (return (local.get $errno))))
  (call $give_strings (i32.load $state (global.get $args)) (i32.load $state (global.get $args_count))
    (i32.load $state (global.get $args_size)) (local.get $argv) (local.get $buffer))
  (global.get $SUCCESS))

(func (export "args_sizes_get") (param $count i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 1))) (then (return (local.get $errno))))
  (i32.store $guest (local.get $count) (i32.load $state (global.get $args_count)))
  (i32.store $guest (local.get $size) (i32.load $state (global.get $args_size)))
  (global.get $SUCCESS))

(func (export "environ_get") (param $environ i32) (param $buffer i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 2))) (then (return (local.get $errno))))
  (call $give_strings (i32.load $state (global.get $environ)) (i32.load $state (global.get $environ_count))
    (i32.load $state (global.get $environ_size)) (local.get $environ) (local.get $buffer))
  (global.get $SUCCESS))

(func (export "environ_sizes_get") (param $count i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 3))) (then (return (local.get $errno))))
  (i32.store $guest (local.get $count) (i32.load $state (global.get $environ_count)))
  (i32.store $guest (local.get $size) (i32.load $state (global.get $environ_size)))
  (global.get $SUCCESS))

;; -- clocks ---------------------------------------------------------------------------------------------------------

(func (export "clock_res_get") (param $clock i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 4))) (then (return (local.get $errno))))
  (call $native.clock_res_get (local.get $clock) (local.get $result)))

(func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 5))) (then (return (local.get $errno))))
  (call $native.clock_time_get (local.get $clock) (local.get $precision) (local.get $result)))

;; -- descriptors ----------------------------------------------------------------------------------------------------

(func (export "fd_advise") (param $fd i32) (param $offset i64) (param $length i64) (param $advice i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 6))) (then (return (local.get $errno))))
  (call $native.fd_advise (local.get $fd) (local.get $offset) (local.get $length) (local.get $advice)))

(func (export "fd_allocate") (param $fd i32) (param $offset i64) (param $length i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 7))) (then (return (local.get $errno))))
  (call $native.fd_allocate (local.get $fd) (local.get $offset) (local.get $length)))

(func (export "fd_close") (param $fd i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 8))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.fd_close (local.get $fd))) (then (return (local.get $errno))))
  (call $forget (local.get $fd))
  (global.get $SUCCESS))

(func (export "fd_datasync") (param $fd i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 9))) (then (return (local.get $errno))))
  (call $native.fd_datasync (local.get $fd)))

(func (export "fd_fdstat_get") (param $fd i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 10))) (then (return (local.get $errno))))
  (call $native.fd_fdstat_get (local.get $fd) (local.get $result)))

(func (export "fd_fdstat_set_flags") (param $fd i32) (param $flags i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 11))) (then (return (local.get $errno))))
  (call $native.fd_fdstat_set_flags (local.get $fd) (local.get $flags)))

(func (export "fd_fdstat_set_rights") (param $fd i32) (param $base i64) (param $inheriting i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 12))) (then (return (local.get $errno))))
  (call $native.fd_fdstat_set_rights (local.get $fd) (local.get $base) (local.get $inheriting)))

(func (export "fd_filestat_get") (param $fd i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 13))) (then (return (local.get $errno))))
  (call $native.fd_filestat_get (local.get $fd) (local.get $result)))

(func (export "fd_filestat_set_size") (param $fd i32) (param $size i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 14))) (then (return (local.get $errno))))
  (call $native.fd_filestat_set_size (local.get $fd) (local.get $size)))

(func (export "fd_filestat_set_times") (param $fd i32) (param $accessed i64) (param $modified i64) (param $flags i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 15))) (then (return (local.get $errno))))
  (call $native.fd_filestat_set_times (local.get $fd) (local.get $accessed) (local.get $modified) (local.get $flags)))

(func (export "fd_pread") (param $fd i32) (param $iovs i32) (param $count i32) (param $offset i64) (param $taken i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 16))) (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $native.fd_pread (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset) (local.get $taken)))
    (then (return (local.get $errno))))
  (call $add (global.get $read) (i64.load32_u $guest (local.get $taken)))
  (global.get $SUCCESS))

(func (export "fd_prestat_get") (param $fd i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 17))) (then (return (local.get $errno))))
  (call $native.fd_prestat_get (local.get $fd) (local.get $result)))

(func (export "fd_prestat_dir_name") (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 18))) (then (return (local.get $errno))))
  (call $native.fd_prestat_dir_name (local.get $fd) (local.get $path) (local.get $size)))

(func (export "fd_pwrite") (param $fd i32) (param $iovs i32) (param $count i32) (param $offset i64) (param $written i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 19))) (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $native.fd_pwrite (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset)
          (local.get $written)))
    (then (return (local.get $errno))))
  (call $add (global.get $written) (i64.load32_u $guest (local.get $written)))
  (global.get $SUCCESS))

(func (export "fd_read") (param $fd i32) (param $iovs i32) (param $count i32) (param $taken i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 20))) (then (return (local.get $errno))))
  (if (i32.eq (call $kind (local.get $fd)) (global.get $STDIN))
    (then (return (call $take_stdin (local.get $iovs) (local.get $count) (local.get $taken)))))
  (if (local.tee $errno
        (call $native.fd_read (local.get $fd) (local.get $iovs) (local.get $count) (local.get $taken)))
    (then (return (local.get $errno))))
  (call $add (global.get $read) (i64.load32_u $guest (local.get $taken)))
  (global.get $SUCCESS))

(func (export "fd_readdir") (param $fd i32) (param $buffer i32) (param $size i32) (param $cookie i64) (param $used i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 21))) (then (return (local.get $errno))))
  (call $native.fd_readdir (local.get $fd) (local.get $buffer) (local.get $size) (local.get $cookie) (local.get $used)))

;; What the old number was, the new one is from now on: a captured stream stays captured under any number.
(func (export "fd_renumber") (param $from i32) (param $to i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 22))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.fd_renumber (local.get $from) (local.get $to))) (then (return (local.get $errno))))
  (if (i32.ne (local.get $from) (local.get $to))
    (then
      (call $forget (local.get $to))
      (call $set_kind (local.get $to) (call $kind (local.get $from)))
      (call $set_kind (local.get $from) (global.get $CLOSED))))
  (global.get $SUCCESS))

(func (export "fd_seek") (param $fd i32) (param $offset i64) (param $whence i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 23))) (then (return (local.get $errno))))
  (call $native.fd_seek (local.get $fd) (local.get $offset) (local.get $whence) (local.get $result)))

(func (export "fd_sync") (param $fd i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 24))) (then (return (local.get $errno))))
  (call $native.fd_sync (local.get $fd)))

(func (export "fd_tell") (param $fd i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 25))) (then (return (local.get $errno))))
  (call $native.fd_tell (local.get $fd) (local.get $result)))

(func (export "fd_write") (param $fd i32) (param $iovs i32) (param $count i32) (param $written i32) (result i32)
  (local $errno i32) (local $kind i32)
  (if (local.tee $errno (call $enter (i32.const 26))) (then (return (local.get $errno))))
  (local.set $kind (call $kind (local.get $fd)))
  (if (i32.eq (local.get $kind) (global.get $STDOUT))
    (then (return (call $capture (global.get $stdout) (local.get $iovs) (local.get $count) (local.get $written)))))
  (if (i32.eq (local.get $kind) (global.get $STDERR))
    (then (return (call $capture (global.get $stderr) (local.get $iovs) (local.get $count) (local.get $written)))))
  (if (local.tee $errno
        (call $native.fd_write (local.get $fd) (local.get $iovs) (local.get $count) (local.get $written)))
    (then (return (local.get $errno))))
  (call $add (global.get $written) (i64.load32_u $guest (local.get $written)))
  (global.get $SUCCESS))

;; -- paths ----------------------------------------------------------------------------------------------------------

(func (export "path_create_directory") (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 27))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.path_create_directory (local.get $fd) (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $add (global.get $created) (i64.const 1))
  (global.get $SUCCESS))

(func (export "path_filestat_get") (param $fd i32) (param $flags i32) (param $path i32) (param $size i32)
  (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 28))) (then (return (local.get $errno))))
  (call $native.path_filestat_get (local.get $fd) (local.get $flags) (local.get $path) (local.get $size)
    (local.get $result)))

(func (export "path_filestat_set_times") (param $fd i32) (param $flags i32) (param $path i32) (param $size i32)
  (param $accessed i64) (param $modified i64) (param $what i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 29))) (then (return (local.get $errno))))
  (call $native.path_filestat_set_times (local.get $fd) (local.get $flags) (local.get $path) (local.get $size)
    (local.get $accessed) (local.get $modified) (local.get $what)))

(func (export "path_link") (param $old_fd i32) (param $flags i32) (param $old i32) (param $old_size i32)
  (param $new_fd i32) (param $new i32) (param $new_size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 30))) (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $native.path_link (local.get $old_fd) (local.get $flags) (local.get $old) (local.get $old_size)
          (local.get $new_fd) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (call $add (global.get $created) (i64.const 1))
  (global.get $SUCCESS))

;; To know whether O_CREAT created, it is tried with O_EXCL first; where the file exists, as the guest asked.
(func $open (param $fd i32) (param $lookup i32) (param $path i32) (param $size i32) (param $flags i32)
  (param $rights i64) (param $inheriting i64) (param $fdflags i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (i32.and (local.get $flags) (i32.const 1))
    (then
      (local.set $errno
        (call $native.path_open (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size)
          (i32.or (local.get $flags) (i32.const 4)) (local.get $rights) (local.get $inheriting) (local.get $fdflags)
          (local.get $result)))
      (if (i32.eqz (local.get $errno)) (then (call $add (global.get $created) (i64.const 1))))
      (if (i32.or (i32.ne (local.get $errno) (global.get $EEXIST)) (i32.and (local.get $flags) (i32.const 4)))
        (then (return (local.get $errno))))))
  (call $native.path_open (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size) (local.get $flags)
    (local.get $rights) (local.get $inheriting) (local.get $fdflags) (local.get $result)))

(func (export "path_open") (param $fd i32) (param $lookup i32) (param $path i32) (param $size i32) (param $flags i32)
  (param $rights i64) (param $inheriting i64) (param $fdflags i32) (param $result i32) (result i32)
  (local $errno i32) (local $new i32)
  (if (local.tee $errno (call $enter (i32.const 31))) (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $open (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size) (local.get $flags)
          (local.get $rights) (local.get $inheriting) (local.get $fdflags) (local.get $result)))
    (then (return (local.get $errno))))
  (local.set $new (i32.load $guest (local.get $result)))
  ;; No descriptor is ever out of the table's reach.
  (if (i32.ge_u (local.get $new) (global.get $MAX_DESCRIPTORS))
    (then
      (drop (call $native.fd_close (local.get $new)))
      (return (global.get $EMFILE))))
  (call $set_kind (local.get $new) (global.get $FILE))
  (call $add (global.get $opened) (i64.const 1))
  (call $add (global.get $open_now) (i64.const 1))
  (call $keep_max (global.get $open_peak) (i64.load $state (global.get $open_now)))
  (global.get $SUCCESS))

(func (export "path_readlink") (param $fd i32) (param $path i32) (param $size i32) (param $buffer i32)
  (param $buffer_size i32) (param $used i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 32))) (then (return (local.get $errno))))
  (call $native.path_readlink (local.get $fd) (local.get $path) (local.get $size) (local.get $buffer)
    (local.get $buffer_size) (local.get $used)))

(func (export "path_remove_directory") (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 33))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.path_remove_directory (local.get $fd) (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $add (global.get $deleted) (i64.const 1))
  (global.get $SUCCESS))

(func (export "path_rename") (param $old_fd i32) (param $old i32) (param $old_size i32) (param $new_fd i32)
  (param $new i32) (param $new_size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 34))) (then (return (local.get $errno))))
  (call $native.path_rename (local.get $old_fd) (local.get $old) (local.get $old_size) (local.get $new_fd)
    (local.get $new) (local.get $new_size)))

(func (export "path_symlink") (param $old i32) (param $old_size i32) (param $fd i32) (param $new i32)
  (param $new_size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 35))) (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $native.path_symlink (local.get $old) (local.get $old_size) (local.get $fd) (local.get $new)
          (local.get $new_size)))
    (then (return (local.get $errno))))
  (call $add (global.get $created) (i64.const 1))
  (global.get $SUCCESS))

(func (export "path_unlink_file") (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 36))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.path_unlink_file (local.get $fd) (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $add (global.get $deleted) (i64.const 1))
  (global.get $SUCCESS))

;; -- waiting --------------------------------------------------------------------------------------------------------

;; The time of a clock. Native WASI writes it to the guest's memory, so a place is needed that is ours for the moment.
(func $now (param $clock i32) (param $place i32) (result i64)
  (drop (call $native.clock_time_get (local.get $clock) (i64.const 0) (local.get $place)))
  (i64.load $guest (local.get $place)))

;; Native WASI waits as long as it is told, out of reach of any deadline. So no wait is longer than a slice: each clock
;; subscription is put down as a monotonic deadline, native WASI is asked to wait for at most a slice of it, and between
;; slices the loop lets the engine look up. Descriptors in the same poll are watched by native WASI all the while.
;; What changes in the guest's subscriptions is put back before the call returns.
(func (export "poll_oneoff") (param $in i32) (param $out i32) (param $count i32) (param $events i32) (result i32)
  (local $errno i32) (local $size i32) (local $copy i32) (local $deadlines i32) (local $begin i64)
  (local $clocks i32)
  (if (local.tee $errno (call $enter (i32.const 37))) (then (return (local.get $errno))))
  (if (i32.or (i32.eqz (local.get $count)) (i32.gt_u (local.get $count) (global.get $POLL_MAX)))
    (then (return (global.get $EINVAL))))
  (local.set $size (i32.mul (local.get $count) (global.get $SUBSCRIPTION_SIZE)))
  (call $check (local.get $in) (i64.extend_i32_u (local.get $size)))
  (call $check (local.get $out) (i64.extend_i32_u (i32.mul (local.get $count) (global.get $EVENT_SIZE))))
  (call $check (local.get $events) (i64.const 4))
  ;; Events written over the subscriptions would confuse native WASI as much as us.
  (if (i32.and
        (i32.lt_u (local.get $in) (i32.add (local.get $out) (i32.mul (local.get $count) (global.get $EVENT_SIZE))))
        (i32.lt_u (local.get $out) (i32.add (local.get $in) (local.get $size))))
    (then (return (global.get $EINVAL))))
  ;; The subscriptions as the guest wrote them, and a deadline for each.
  (local.set $copy (i32.load $state (global.get $scratch)))
  (local.set $deadlines (i32.add (local.get $copy) (local.get $size)))
  (call $reserve (i64.extend_i32_u (i32.add (local.get $deadlines) (i32.shl (local.get $count) (i32.const 3)))))
  (memory.copy $state $guest (local.get $copy) (local.get $in) (local.get $size))
  (local.set $begin (call $now (i32.const 1) (local.get $out)))
  (local.set $clocks
    (call $set_deadlines (local.get $copy) (local.get $deadlines) (local.get $count) (local.get $out)
      (local.get $begin)))
  (local.set $errno
    (if (result i32) (local.get $clocks)
      (then (call $wait (local.get $in) (local.get $out) (local.get $count) (local.get $events)
              (local.get $copy) (local.get $deadlines)))
      (else (call $native.poll_oneoff (local.get $in) (local.get $out) (local.get $count) (local.get $events)))))
  (memory.copy $guest $state (local.get $in) (local.get $copy) (local.get $size))
  (if (local.get $clocks)
    (then
      ;; The clock is read into the first subscription, which is then put back: the events must stay.
      (call $add (global.get $idle) (i64.sub (call $now (i32.const 1) (local.get $in)) (local.get $begin)))
      (memory.copy $guest $state (local.get $in) (local.get $copy) (local.get $size))))
  (local.get $errno))

;; Writes the monotonic time at which each clock subscription is due, or the end of time for a subscription of another
;; kind or for a clock that native WASI will refuse. Returns how many clock subscriptions there are.
(func $set_deadlines (param $copy i32) (param $deadlines i32) (param $count i32) (param $place i32) (param $begin i64)
  (result i32)
  (local $due i64) (local $timeout i64) (local $clock i32) (local $clocks i32) (local $real i64)
  (loop $next
    (local.set $due (i64.const -1))
    (local.set $clock (i32.load $state offset=16 (local.get $copy)))
    (if (i32.and (i32.eqz (i32.load8_u $state offset=8 (local.get $copy)))
                 (i32.le_u (local.get $clock) (i32.const 1)))
      (then
        (local.set $clocks (i32.add (local.get $clocks) (i32.const 1)))
        (local.set $timeout (i64.load $state offset=24 (local.get $copy)))
        (local.set $due (local.get $timeout))
        (if (i32.eqz (i32.and (i32.load16_u $state offset=40 (local.get $copy)) (i32.const 1)))
          ;; Relative. A sum beyond the end of time is the end of time.
          (then
            (local.set $due (i64.add (local.get $begin) (local.get $timeout)))
            (if (i64.lt_u (local.get $due) (local.get $begin)) (then (local.set $due (i64.const -1)))))
          (else
            (if (i32.eqz (local.get $clock))
              ;; An absolute time of day: as far off from now as it is on that clock.
              (then
                (local.set $real (call $now (i32.const 0) (local.get $place)))
                (local.set $due (local.get $begin))
                (if (i64.gt_u (local.get $timeout) (local.get $real))
                  (then
                    (local.set $due
                      (i64.add (local.get $begin) (i64.sub (local.get $timeout) (local.get $real))))
                    (if (i64.lt_u (local.get $due) (local.get $begin)) (then (local.set $due (i64.const -1))))))))))))
    (i64.store $state (local.get $deadlines) (local.get $due))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (local.get $clocks))

;; Waits in slices until a subscription is due or a descriptor is ready. The loop is where the engine looks up.
(func $wait (param $in i32) (param $out i32) (param $count i32) (param $events i32) (param $copy i32)
  (param $deadlines i32) (result i32)
  (local $errno i32) (local $now i64) (local $ready i32)
  (loop $slice
    (local.set $now (call $now (i32.const 1) (local.get $out)))
    (call $patch (local.get $in) (local.get $copy) (local.get $deadlines) (local.get $count) (local.get $now))
    (if (local.tee $errno
          (call $native.poll_oneoff (local.get $in) (local.get $out) (local.get $count) (local.get $events)))
      (then (return (local.get $errno))))
    ;; The clock is read into the first subscription, which is patched again before the next slice.
    (local.set $now (call $now (i32.const 1) (local.get $in)))
    (local.set $ready
      (call $settle (local.get $out) (i32.load $guest (local.get $events)) (local.get $copy) (local.get $deadlines)
        (local.get $count) (local.get $now)))
    (br_if $slice (i32.eqz (local.get $ready))))
  (i32.store $guest (local.get $events) (local.get $ready))
  (global.get $SUCCESS))

;; Tells native WASI to wait for each clock subscription until it is due, but for no longer than a slice.
(func $patch (param $in i32) (param $copy i32) (param $deadlines i32) (param $count i32) (param $now i64)
  (local $left i64)
  (loop $next
    (memory.copy $guest $state (local.get $in) (local.get $copy) (global.get $SUBSCRIPTION_SIZE))
    (if (i32.and (i32.eqz (i32.load8_u $state offset=8 (local.get $copy)))
                 (i32.le_u (i32.load $state offset=16 (local.get $copy)) (i32.const 1)))
      (then
        (local.set $left (i64.const 0))
        (if (i64.gt_u (i64.load $state (local.get $deadlines)) (local.get $now))
          (then (local.set $left (i64.sub (i64.load $state (local.get $deadlines)) (local.get $now)))))
        (if (i64.gt_u (local.get $left) (i64.load $state (global.get $slice)))
          (then (local.set $left (i64.load $state (global.get $slice)))))
        (i32.store $guest offset=16 (local.get $in) (i32.const 1))      ;; the monotonic clock,
        (i64.store $guest offset=24 (local.get $in) (local.get $left))  ;; so long from now
        (i32.store16 $guest offset=40 (local.get $in) (i32.const 0))))
    (local.set $in (i32.add (local.get $in) (global.get $SUBSCRIPTION_SIZE)))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1))))))

;; Keeps the events of descriptors that native WASI reported, drops those of clocks (most of them mark a slice), and
;; adds one for each clock subscription that is truly due. Returns how many there are now.
(func $settle (param $out i32) (param $reported i32) (param $copy i32) (param $deadlines i32) (param $count i32)
  (param $now i64) (result i32)
  (local $at i32) (local $kept i32)
  (local.set $at (local.get $out))
  (block $read
    (loop $next
      (br_if $read (i32.eqz (local.get $reported)))
      (if (i32.load8_u $guest offset=10 (local.get $at))
        (then
          (memory.copy $guest $guest (local.get $out) (local.get $at) (global.get $EVENT_SIZE))
          (local.set $out (i32.add (local.get $out) (global.get $EVENT_SIZE)))
          (local.set $kept (i32.add (local.get $kept) (i32.const 1)))))
      (local.set $at (i32.add (local.get $at) (global.get $EVENT_SIZE)))
      (local.set $reported (i32.sub (local.get $reported) (i32.const 1)))
      (br $next)))
  (loop $next
    (if (i32.and
          (i32.and (i32.eqz (i32.load8_u $state offset=8 (local.get $copy)))
                   (i32.le_u (i32.load $state offset=16 (local.get $copy)) (i32.const 1)))
          (i64.le_u (i64.load $state (local.get $deadlines)) (local.get $now)))
      (then
        (memory.fill $guest (local.get $out) (i32.const 0) (global.get $EVENT_SIZE))
        (i64.store $guest (local.get $out) (i64.load $state (local.get $copy)))
        (local.set $out (i32.add (local.get $out) (global.get $EVENT_SIZE)))
        (local.set $kept (i32.add (local.get $kept) (i32.const 1)))))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (local.get $kept))

;; -- processes, randomness, scheduling ------------------------------------------------------------------------------

;; Ends the run by a trap, with the code noted where only the guard can write: every code is passed on as it is.
(func (export "proc_exit") (param $code i32)
  (drop (call $enter (i32.const 38)))
  (i32.store $state (global.get $exit_code) (local.get $code))
  (i32.store $state (global.get $exited) (i32.const 1))
  (unreachable))

(func (export "proc_raise") (param $signal i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 39))) (then (return (local.get $errno))))
  (call $native.proc_raise (local.get $signal)))

(func (export "random_get") (param $buffer i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 40))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.random_get (local.get $buffer) (local.get $size)))
    (then (return (local.get $errno))))
  (call $add (global.get $random) (i64.extend_i32_u (local.get $size)))
  (global.get $SUCCESS))

(func (export "sched_yield") (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 41))) (then (return (local.get $errno))))
  (call $native.sched_yield))

;; -- sockets: there are none in preview 1 that a guest could open, and the policy refuses these ------------------------

(global $ENOTSOCK i32 (i32.const 57))

(func (export "sock_accept") (param $fd i32) (param $flags i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 42))) (then (return (local.get $errno))))
  (global.get $ENOTSOCK))

(func (export "sock_recv") (param $fd i32) (param $iovs i32) (param $count i32) (param $flags i32) (param $size i32)
  (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 43))) (then (return (local.get $errno))))
  (global.get $ENOTSOCK))

(func (export "sock_send") (param $fd i32) (param $iovs i32) (param $count i32) (param $flags i32) (param $size i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 44))) (then (return (local.get $errno))))
  (global.get $ENOTSOCK))

(func (export "sock_shutdown") (param $fd i32) (param $how i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 45))) (then (return (local.get $errno))))
  (global.get $ENOTSOCK))

;; -- growth ---------------------------------------------------------------------------------------------------------

;; Asks whether memories and tables may have so many bytes more. If not, notes it, and ends the run where the policy
;; says so: a guest may ignore the -1 it gets, the report does not.
(func $may_have (param $more i64) (result i32)
  (local $asked i64)
  (local.set $asked (i64.add (i64.load $state (global.get $memory_used)) (local.get $more)))
  (if (i64.le_u (local.get $asked) (i64.load $state (global.get $memory_limit))) (then (return (i32.const 1))))
  (call $add (global.get $memory_refusals) (i64.const 1))
  (call $keep_max (global.get $memory_asked) (local.get $asked))
  (if (i32.load $state (global.get $stop_on_memory)) (then (call $end_run (global.get $STOP_MEMORY))))
  (i32.const 0))

;; The weaver makes a copy of this for each memory that the guest grows.
(func (export "memory_grow") (param $pages i32) (result i32)
  (local $bytes i64) (local $before i32)
  (local.set $bytes (i64.shl (i64.extend_i32_u (local.get $pages)) (i64.const 16)))
  (if (i32.eqz (call $may_have (local.get $bytes))) (then (return (i32.const -1))))
  (if (i32.ne (local.tee $before (memory.grow $guest (local.get $pages))) (i32.const -1))
    (then (call $add (global.get $memory_used) (local.get $bytes))))
  (local.get $before))

(func $may_have_elements (param $more i32) (result i32)
  (local $asked i64)
  (local.set $asked (i64.add (i64.load $state (global.get $table_used)) (i64.extend_i32_u (local.get $more))))
  (if (i64.gt_u (local.get $asked) (i64.load $state (global.get $table_limit)))
    (then
      (call $add (global.get $table_refusals) (i64.const 1))
      (call $keep_max (global.get $table_asked) (local.get $asked))
      (if (i32.load $state (global.get $stop_on_memory)) (then (call $end_run (global.get $STOP_MEMORY))))
      (return (i32.const 0))))
  (call $may_have (i64.shl (i64.extend_i32_u (local.get $more)) (i64.const 3))))

(func $had_elements (param $more i32)
  (call $add (global.get $table_used) (i64.extend_i32_u (local.get $more)))
  (call $add (global.get $memory_used) (i64.shl (i64.extend_i32_u (local.get $more)) (i64.const 3))))

;; The weaver makes a copy of one of these for each table that the guest grows.
(func (export "funcref_table_grow") (param $value funcref) (param $more i32) (result i32)
  (local $before i32)
  (if (i32.eqz (call $may_have_elements (local.get $more))) (then (return (i32.const -1))))
  (if (i32.ne (local.tee $before (table.grow $guest.funcrefs (local.get $value) (local.get $more))) (i32.const -1))
    (then (call $had_elements (local.get $more))))
  (local.get $before))

(func (export "externref_table_grow") (param $value externref) (param $more i32) (result i32)
  (local $before i32)
  (if (i32.eqz (call $may_have_elements (local.get $more))) (then (return (i32.const -1))))
  (if (i32.ne (local.tee $before (table.grow $guest.externrefs (local.get $value) (local.get $more))) (i32.const -1))
    (then (call $had_elements (local.get $more))))
  (local.get $before))
)
