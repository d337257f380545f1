;; The guard: the policy, as WebAssembly.
;;
;; This module is woven into every guest (see _weave.py). Each call that the guest makes to WASI lands in the function
;; of that name here, which counts it, asks the policy, and then passes it on to native WASI, serves it from the guard's
;; own memory, or refuses it. memory.grow and table.grow of the guest land in the functions at the end.
;;
;; Two memories are in reach. $guest is the guest's own: everything in it may be hostile, and every address in it is the
;; guest's choice. $state is the guard's: no instruction of the guest can name it, so what stands there is the truth of
;; the run. Native WASI knows $state only. Paths, buffers and answers go in and out by way of the guard's places below.
;;
;; Every call takes the same way, and each step assumes that the earlier ones are done:
;;
;;   1. enter     It is counted, and refused where the policy does not allow it at all. A rate of calls makes it wait here.
;;   2. decode    Every address it was given is checked for range and alignment, and what it points to is copied in once.
;;   3. validate  What native WASI refuses whatever the policy says (no such descriptor, no file) is refused as native
;;                WASI does it.
;;   4. wait      It waits until a rate lets it go on.
;;   5. check     Limits and rights. A violation is noted only for a call that would have succeeded.
;;   6. reserve   What it may come to use is taken from its quotas and counted. Tokens of a rate are not: while they are
;;                out of hand the host could add to them, and they are taken before guest code runs again.
;;   7. native    Native WASI does it.
;;   8. settle    What it did not use is given back. Results go to the guest last.
;;
;; A run may end anywhere: out of fuel, out of stack at a depth that the guest chose, at its deadline. It then has
;; reserved at least what was done, so that a report can tell too much, never too little.
;;
;; No number that the guest chooses stands for something else ("none", "its own position"): such things have a parameter
;; of their own. Differences of unsigned numbers are taken only where it was compared before.
;;
;; The tables below are the layout of $state: each line is the address of a field. Python reads them from here. An export
;; is named by the field, its type, and how long it is kept: `policy` fields never change, `session` fields live as long as
;; the instance, `call` fields begin anew with each call of a session, `audit` fields mean nothing while guest code runs. The
;; weaver puts the number in the place of every global.get, so the names cost nothing.
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

;; Not native: the engine binds this one to a function that halts the guest until the host wakes it (see $wait).
(import "wasi_snapshot_preview1" "poll_oneoff" (func $native.poll_oneoff (param i32 i32 i32 i32) (result i32)))

(import "wasi_snapshot_preview1" "proc_raise" (func $native.proc_raise (param i32) (result i32)))
(import "wasi_snapshot_preview1" "random_get" (func $native.random_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "sched_yield" (func $native.sched_yield (result i32)))

;; -- the guest, and the guard's own memory --------------------------------------------------------------------------

(import "guest" "memory" (memory $guest 0))
(import "guest" "funcref_table" (table $guest.funcrefs 0 funcref))
(import "guest" "externref_table" (table $guest.externrefs 0 externref))
(memory $state (export "memory") 2)

;; -- layout of $state -----------------------------------------------------------------------------------------------

(global $kinds                 (export "kinds:u8[4096]:session")      i32 (i32.const 0)) ;; what became of each descriptor, see below
(global $violations            (export "violations:u8:call")          i32 (i32.const 4096)) ;; VIOLATIONS_MAX entries, see $record
(global $events                (export "events:u8:call")              i32 (i32.const 12288)) ;; a ring of EVENTS_MAX entries, see $note_event
(global $sizes                                                        i32 (i32.const 16384)) ;; of each descriptor below SIZES_MAX, bytes that its file is known to have, u64
(global $path                  (export "path:u8[4096]:note")          i32 (i32.const 24576)) ;; a path, on its way to native WASI
(global $path2                                                        i32 (i32.const 28672)) ;; a second one
(global $result                                                       i32 (i32.const 32768)) ;; what native WASI answers, up to 64 bytes
(global $iovec                                                        i32 (i32.const 32832)) ;; the buffer of one native read or write: address and length
(global $moment                                                       i32 (i32.const 32840)) ;; what a native clock answers

;; The policy, which the host writes before the guest's first instruction. A limit of 2^64-1 is no limit.

(global $block                 (export "block:u8:policy")             i32 (i32.const 32848)) ;; the host writes and reads from here
(global $memory_limit          (export "memory_limit:u64:policy")     i32 (i32.const 32848)) ;; bytes that all memories and tables may have together
(global $table_limit           (export "table_limit:u64:policy")      i32 (i32.const 32856)) ;; elements that all tables may have together
(global $growth_rate           (export "growth_rate:u64:policy")      i32 (i32.const 32864)) ;; bytes by which memories and tables may grow in a second
(global $calls_limit           (export "calls_limit:u64:policy")      i32 (i32.const 32872)) ;; WASI calls
(global $call_rate             (export "call_rate:u64:policy")        i32 (i32.const 32880)) ;; WASI calls in a second
(global $open_limit            (export "open_limit:u64:policy")       i32 (i32.const 32888)) ;; files and folders open at a time
(global $created_limit         (export "created_limit:u64:policy")    i32 (i32.const 32896)) ;; files, folders and links created
(global $file_size_limit       (export "file_size_limit:u64:policy")  i32 (i32.const 32904)) ;; bytes that a file may reach by writing
(global $read_limit            (export "read_limit:u64:policy")       i32 (i32.const 32912)) ;; bytes read from files
(global $write_limit           (export "write_limit:u64:policy")      i32 (i32.const 32920)) ;; bytes written to files
(global $read_rate             (export "read_rate:u64:policy")        i32 (i32.const 32928)) ;; bytes read in a second
(global $write_rate            (export "write_rate:u64:policy")       i32 (i32.const 32936)) ;; bytes written in a second
(global $random_limit          (export "random_limit:u64:policy")     i32 (i32.const 32944)) ;; random bytes
(global $clock_resolution      (export "clock_resolution:u64:policy") i32 (i32.const 32952)) ;; nanoseconds to which a coarse clock is cut
(global $clock_step            (export "clock_step:u64:policy")       i32 (i32.const 32960)) ;; nanoseconds that a virtual clock advances each time it is read
(global $clock_start           (export "clock_start:u64:policy")      i32 (i32.const 32968)) ;; time of day at which a virtual clock starts, nanoseconds since 1970
(global $clock_mode            (export "clock_mode:u32:policy")       i32 (i32.const 32976)) ;; CLOCK_REAL, CLOCK_COARSE, CLOCK_VIRTUAL or CLOCK_NONE
(global $random_mode           (export "random_mode:u32:policy")      i32 (i32.const 32980)) ;; RANDOM_NATIVE or RANDOM_SEEDED
(global $on_violation          (export "on_violation:u32:policy")     i32 (i32.const 32984)) ;; DENY, STOP or AUDIT
(global $on_rate               (export "on_rate:u32:policy")          i32 (i32.const 32988)) ;; WAIT or REFUSE, where a rate is exceeded
(global $on_memory             (export "on_memory:u32:policy")        i32 (i32.const 32992)) ;; 1: refused growth ends the run
(global $may_create            (export "may_create:u32:policy")       i32 (i32.const 32996)) ;; 1: files and folders may be created
(global $may_delete            (export "may_delete:u32:policy")       i32 (i32.const 33000)) ;; 1: files and folders may be removed
(global $may_link              (export "may_link:u32:policy")         i32 (i32.const 33004)) ;; 1: symbolic and hard links may be made
(global $has_clock             (export "has_clock:u32:policy")        i32 (i32.const 33008)) ;; 1: native clocks are in reach
(global $look_first            (export "look_first:u32:policy")       i32 (i32.const 33012)) ;; 1: a path is looked at before it is opened, for opening a FIFO may take for ever
(global $mounts                (export "mounts:u32:policy")           i32 (i32.const 33016)) ;; how many descriptors from 3 on are mounts
(global $stdin                 (export "stdin:u32:policy")            i32 (i32.const 33020)) ;; where stdin's bytes stand
(global $args                  (export "args:u32:policy")             i32 (i32.const 33024)) ;; arguments, each ended by a zero byte
(global $args_count            (export "args_count:u32:policy")       i32 (i32.const 33028)) ;; how many
(global $args_size             (export "args_size:u32:policy")        i32 (i32.const 33032)) ;; their bytes in all, zero bytes included
(global $environ               (export "environ:u32:policy")          i32 (i32.const 33036)) ;; NAME=value, each ended by a zero byte
(global $environ_count         (export "environ_count:u32:policy")    i32 (i32.const 33040)) ;; how many
(global $environ_size          (export "environ_size:u32:policy")     i32 (i32.const 33044)) ;; their bytes in all
(global $tap                   (export "tap:u32:policy")              i32 (i32.const 33048)) ;; where the ring of output for the host lies; 0: nobody listens
(global $tap_size              (export "tap_size:u32:policy")         i32 (i32.const 33052)) ;; its bytes, a power of two
(global $scratch               (export "scratch:u32:policy")          i32 (i32.const 33056)) ;; where free room begins, above everything else
(global $rules                 (export "rules:u8[64]:policy")         i32 (i32.const 33060)) ;; by call number: 0, or the errno that refuses it

;; What lives as long as the instance: what is left of quotas, and what is held.

(global $credit                (export "credit:u64:session")          i32 (i32.const 33128)) ;; calls that may be made before calls_left and call_tokens are looked at
(global $calls_left            (export "calls_left:u64:session")      i32 (i32.const 33136)) ;; calls that may be made beyond the credit
(global $calls_over            (export "calls_over:u64:session")      i32 (i32.const 33144)) ;; calls that were made beyond the limit, where the policy only audits
(global $call_tokens           (export "call_tokens:u64:session")     i32 (i32.const 33152)) ;; calls that may be made at once; the host adds to it as time goes by, and to the next three
(global $read_tokens           (export "read_tokens:u64:session")     i32 (i32.const 33160)) ;; bytes that may be read at once
(global $write_tokens          (export "write_tokens:u64:session")    i32 (i32.const 33168)) ;; bytes that may be written at once
(global $growth_tokens         (export "growth_tokens:u64:session")   i32 (i32.const 33176)) ;; bytes by which memories and tables may grow at once
(global $read_left             (export "read_left:u64:session")       i32 (i32.const 33184)) ;; bytes that may be read
(global $write_left            (export "write_left:u64:session")      i32 (i32.const 33192)) ;; bytes that may be written
(global $created_left          (export "created_left:u64:session")    i32 (i32.const 33200)) ;; files, folders and links that may be created
(global $random_left           (export "random_left:u64:session")     i32 (i32.const 33208)) ;; random bytes that may be handed out
(global $stdin_size            (export "stdin_size:u32:session")      i32 (i32.const 33216)) ;; how many bytes of stdin stand in place
(global $stdin_mode            (export "stdin_mode:u32:session")      i32 (i32.const 33220)) ;; STDIN_BYTES, that is all; STDIN_ASKED, the host is asked for more
(global $stdin_read            (export "stdin_read:u32:session")      i32 (i32.const 33224)) ;; of the bytes in place, how many the guest has taken
(global $virtual_now           (export "virtual_now:u64:session")     i32 (i32.const 33232)) ;; nanoseconds on the virtual clock
(global $random_state          (export "random_state:u64:session")    i32 (i32.const 33240)) ;; of the seeded generator; the host writes the seed
(global $tap_written           (export "tap_written:u64:session")     i32 (i32.const 33248)) ;; bytes put into the ring of output, frames and their heads
(global $tap_read              (export "tap_read:u64:session")        i32 (i32.const 33256)) ;; of these, taken out by the host
(global $memory_used           (export "memory_used:u64:session")     i32 (i32.const 33264)) ;; bytes that memories and tables have: never shrinks; the host writes what they begin with
(global $table_used            (export "table_used:u64:session")      i32 (i32.const 33272)) ;; the same, elements of tables
(global $open_now              (export "open_now:u64:session")        i32 (i32.const 33280)) ;; files and folders open

;; What is told of one call, and begins anew with the next. An output stream is four numbers: base, head, cap (each u32)
;; and total (u64). Its first cap bytes land in [base, base+cap) in order; of what follows, the part [head, cap) keeps the
;; newest. So the beginning and the end of the output are kept, and total tells how much there was.

(global $stdout                (export "stdout:stream:call")          i32 (i32.const 33288)) ;; the captured output
(global $stderr                (export "stderr:stream:call")          i32 (i32.const 33312)) ;; the same of stderr
(global $exited                (export "exited:u32:call")             i32 (i32.const 33336)) ;; 1: the guest called proc_exit
(global $exit_code             (export "exit_code:u32:call")          i32 (i32.const 33340)) ;; with this
(global $stop                  (export "stop:u32:call")               i32 (i32.const 33344)) ;; why the guard ended the run, see below
(global $violation_count       (export "violation_count:u32:call")    i32 (i32.const 33348)) ;; entries in $violations
(global $violation_kinds       (export "violation_kinds:u32:call")    i32 (i32.const 33352)) ;; a bit for each kind that has an entry
(global $memory_refusals       (export "memory_refusals:u64:call")    i32 (i32.const 33360)) ;; growths refused by memory_limit
(global $memory_asked          (export "memory_asked:u64:call")       i32 (i32.const 33368)) ;; the most bytes asked for in vain
(global $table_refusals        (export "table_refusals:u64:call")     i32 (i32.const 33376)) ;; growths refused by table_limit
(global $table_asked           (export "table_asked:u64:call")        i32 (i32.const 33384)) ;; the most elements asked for in vain
(global $table_memory_refusals (export "table_memory_refusals:u64:call") i32 (i32.const 33392)) ;; growths of tables refused by memory_limit
(global $growth_refusals       (export "growth_refusals:u64:call")    i32 (i32.const 33400)) ;; growths of memories refused by growth_rate
(global $table_growth_refusals (export "table_growth_refusals:u64:call") i32 (i32.const 33408)) ;; growths of tables refused by growth_rate
(global $growth_asked          (export "growth_asked:u64:call")       i32 (i32.const 33416)) ;; the most bytes asked for at once in vain
(global $idle                  (export "idle:u64:call")               i32 (i32.const 33424)) ;; nanoseconds spent waiting, in poll_oneoff or for stdin; the host counts them
(global $read                  (export "read:u64:call")               i32 (i32.const 33432)) ;; bytes read from files
(global $written               (export "written:u64:call")            i32 (i32.const 33440)) ;; bytes written to files, and by which files grew without being written
(global $random                (export "random:u64:call")             i32 (i32.const 33448)) ;; random bytes handed out
(global $opened                (export "opened:u64:call")             i32 (i32.const 33456)) ;; files and folders opened
(global $open_peak             (export "open_peak:u64:call")          i32 (i32.const 33464)) ;; the most that were open at any time
(global $created               (export "created:u64:call")            i32 (i32.const 33472)) ;; files, folders and links created
(global $deleted               (export "deleted:u64:call")            i32 (i32.const 33480)) ;; files and folders removed
(global $violations_dropped    (export "violations_dropped:u64:call") i32 (i32.const 33488)) ;; violations that found no entry
(global $event_count           (export "event_count:u64:call")        i32 (i32.const 33496)) ;; events written, overwritten ones included
(global $calls                 (export "calls:u64[47]:call")          i32 (i32.const 33504)) ;; by call number: how often it was made
(global $denied                (export "denied:u64[47]:call")         i32 (i32.const 33880)) ;; and how often it was refused

;; Between the guard and the host, while the guest is halted.

(global $notes                 (export "notes:u8:note")               i32 (i32.const 34256)) ;; from here on nothing is read for reports
(global $host_now              (export "host_now:u64:note")           i32 (i32.const 34256)) ;; nanoseconds into the run, by the host, as of its last look
(global $wait_reason           (export "wait_reason:u32:note")        i32 (i32.const 34264)) ;; while the guest is parked: what wakes it, a sum of FOR_ reasons; else 0
(global $wait_call             (export "wait_call:u32:note")          i32 (i32.const 34268)) ;; the call that waits
(global $wait_nanoseconds      (export "wait_nanoseconds:u64:note")   i32 (i32.const 34272)) ;; FOR_TIME: how long at most
(global $wait_bucket           (export "wait_bucket:u32:note")        i32 (i32.const 34280)) ;; FOR_TOKENS: the address of the tokens
(global $wait_amount           (export "wait_amount:u64:note")        i32 (i32.const 34288)) ;; and how many there must be
(global $waited                (export "waited:u64:note")             i32 (i32.const 34296)) ;; nanoseconds that this wait has taken so far; the host counts them
(global $opening               (export "opening:u32:note")            i32 (i32.const 34304)) ;; while native WASI opens a path: for which time it was asked to; else 0
(global $room                  (export "room:u8:note")                i32 (i32.const 34312)) ;; from here on the host places its data

;; -- constants ------------------------------------------------------------------------------------------------------

;; Calls by their numbers: the order of the table in _wasi.py.
(global $N.args_get                  i32 (i32.const 0))
(global $N.args_sizes_get            i32 (i32.const 1))
(global $N.environ_get               i32 (i32.const 2))
(global $N.environ_sizes_get         i32 (i32.const 3))
(global $N.clock_res_get             i32 (i32.const 4))
(global $N.clock_time_get            i32 (i32.const 5))
(global $N.fd_advise                 i32 (i32.const 6))
(global $N.fd_allocate               i32 (i32.const 7))
(global $N.fd_close                  i32 (i32.const 8))
(global $N.fd_datasync               i32 (i32.const 9))
(global $N.fd_fdstat_get             i32 (i32.const 10))
(global $N.fd_fdstat_set_flags       i32 (i32.const 11))
(global $N.fd_fdstat_set_rights      i32 (i32.const 12))
(global $N.fd_filestat_get           i32 (i32.const 13))
(global $N.fd_filestat_set_size      i32 (i32.const 14))
(global $N.fd_filestat_set_times     i32 (i32.const 15))
(global $N.fd_pread                  i32 (i32.const 16))
(global $N.fd_prestat_get            i32 (i32.const 17))
(global $N.fd_prestat_dir_name       i32 (i32.const 18))
(global $N.fd_pwrite                 i32 (i32.const 19))
(global $N.fd_read                   i32 (i32.const 20))
(global $N.fd_readdir                i32 (i32.const 21))
(global $N.fd_renumber               i32 (i32.const 22))
(global $N.fd_seek                   i32 (i32.const 23))
(global $N.fd_sync                   i32 (i32.const 24))
(global $N.fd_tell                   i32 (i32.const 25))
(global $N.fd_write                  i32 (i32.const 26))
(global $N.path_create_directory     i32 (i32.const 27))
(global $N.path_filestat_get         i32 (i32.const 28))
(global $N.path_filestat_set_times   i32 (i32.const 29))
(global $N.path_link                 i32 (i32.const 30))
(global $N.path_open                 i32 (i32.const 31))
(global $N.path_readlink             i32 (i32.const 32))
(global $N.path_remove_directory     i32 (i32.const 33))
(global $N.path_rename               i32 (i32.const 34))
(global $N.path_symlink              i32 (i32.const 35))
(global $N.path_unlink_file          i32 (i32.const 36))
(global $N.poll_oneoff               i32 (i32.const 37))
(global $N.proc_exit                 i32 (i32.const 38))
(global $N.proc_raise                i32 (i32.const 39))
(global $N.random_get                i32 (i32.const 40))
(global $N.sched_yield               i32 (i32.const 41))
(global $N.sock_accept               i32 (i32.const 42))
(global $N.sock_recv                 i32 (i32.const 43))
(global $N.sock_send                 i32 (i32.const 44))
(global $N.sock_shutdown             i32 (i32.const 45))
;; What stands for all functions of the embedder where calls have numbers: one more than the last of WASI's.
(global $HOST               (export "HOST:const")                i32 (i32.const 46))

;; Reasons in $stop.
(global $STOP_MEMORY        (export "STOP_MEMORY:const")         i32 (i32.const 1)) ;; growth was refused, and the policy says stop
(global $STOP_HOST_MEMORY   (export "STOP_HOST_MEMORY:const")    i32 (i32.const 2)) ;; the host has no memory left for the guard
(global $STOP_DENIED        (export "STOP_DENIED:const")         i32 (i32.const 3)) ;; a violation, and the policy says stop

;; Reasons in $wait_reason, as a sum: the guest goes on when one of them holds.
(global $FOR_TIME           (export "FOR_TIME:const")            i32 (i32.const 1)) ;; $wait_nanoseconds have passed
(global $FOR_STDIN          (export "FOR_STDIN:const")           i32 (i32.const 2)) ;; more of stdin is in place, or its end is known
(global $FOR_TOKENS         (export "FOR_TOKENS:const")          i32 (i32.const 4)) ;; there are $wait_amount tokens in $wait_bucket
(global $FOR_ROOM           (export "FOR_ROOM:const")            i32 (i32.const 8)) ;; the host has taken output from the ring
(global $FOR_NOW            (export "FOR_NOW:const")             i32 (i32.const 16)) ;; at once: tokens and stdin are as of now

;; What is done about a violation, in $on_violation and in its entry; and where a rate is exceeded, in $on_rate.
(global $DENY               (export "DENY:const")                i32 (i32.const 0))
(global $STOP               (export "STOP:const")                i32 (i32.const 1))
(global $AUDIT              (export "AUDIT:const")                i32 (i32.const 2))
(global $WAIT               (export "WAIT:const")                i32 (i32.const 0))
(global $REFUSE             (export "REFUSE:const")              i32 (i32.const 1))

(global $CLOCK_REAL         (export "CLOCK_REAL:const")          i32 (i32.const 0))
(global $CLOCK_COARSE       (export "CLOCK_COARSE:const")        i32 (i32.const 1))
(global $CLOCK_VIRTUAL      (export "CLOCK_VIRTUAL:const")       i32 (i32.const 2))
(global $CLOCK_NONE         (export "CLOCK_NONE:const")          i32 (i32.const 3))
(global $REALTIME                                                i32 (i32.const 0)) ;; the clock of WASI that tells the time of day
(global $MONOTONIC                                               i32 (i32.const 1)) ;; the one that never goes back
(global $STDIN_BYTES        (export "STDIN_BYTES:const")         i32 (i32.const 0))
(global $STDIN_ASKED        (export "STDIN_ASKED:const")         i32 (i32.const 1))
(global $RANDOM_NATIVE      (export "RANDOM_NATIVE:const")       i32 (i32.const 0))
(global $RANDOM_SEEDED      (export "RANDOM_SEEDED:const")       i32 (i32.const 1))

;; Kinds of violations, by the names that reports give them.
(global $KIND_call          (export "KIND_call:const")           i32 (i32.const 0))
(global $KIND_calls         (export "KIND_calls:const")          i32 (i32.const 1))
(global $KIND_call_rate     (export "KIND_call_rate:const")      i32 (i32.const 2))
(global $KIND_open_files    (export "KIND_open_files:const")     i32 (i32.const 3))
(global $KIND_files_created (export "KIND_files_created:const")  i32 (i32.const 4))
(global $KIND_create        (export "KIND_create:const")         i32 (i32.const 5))
(global $KIND_delete        (export "KIND_delete:const")         i32 (i32.const 6))
(global $KIND_symlinks      (export "KIND_symlinks:const")       i32 (i32.const 7))
(global $KIND_file_size     (export "KIND_file_size:const")      i32 (i32.const 8))
(global $KIND_read_bytes    (export "KIND_read_bytes:const")     i32 (i32.const 9))
(global $KIND_write_bytes   (export "KIND_write_bytes:const")    i32 (i32.const 10))
(global $KIND_read_rate     (export "KIND_read_rate:const")      i32 (i32.const 11))
(global $KIND_write_rate    (export "KIND_write_rate:const")     i32 (i32.const 12))
(global $KIND_path          (export "KIND_path:const")           i32 (i32.const 13))
(global $KIND_random_bytes  (export "KIND_random_bytes:const")   i32 (i32.const 14))
;; An entry of $violations: kind u32, call u32, count u64, limit u64, observed u64, at u64 (nanoseconds), length of the
;; subject u32, action u32, and the first bytes of the subject. The last entries are kept for kinds that have none yet,
;; so that a flood of one kind cannot push out the first of another.
(global $VIOLATION_SIZE     (export "VIOLATION_SIZE:const")      i32 (i32.const 128))
(global $VIOLATIONS_MAX     (export "VIOLATIONS_MAX:const")      i32 (i32.const 64))
;; An entry of $events, one for each time: kind u32, call u32, errno u32, action u32, limit u64, observed u64, at u64,
;; length of the subject u32, and at $SUBJECT its first bytes. The newest overwrites the oldest.
(global $EVENTS_MAX         (export "EVENTS_MAX:const")          i32 (i32.const 32))
(global $VIOLATIONS_COMMON                                       i32 (i32.const 48))
(global $SUBJECT            (export "SUBJECT:const")             i32 (i32.const 48)) ;; where the subject stands in an entry
(global $SUBJECT_MAX        (export "SUBJECT_MAX:const")         i32 (i32.const 80)) ;; how much of it is kept

;; Kinds of descriptors in $kinds. As it was born, 0: then 0, 1 and 2 are stdin, stdout and stderr, and the next ones are
;; the mounts.
(global $STDIN                                                   i32 (i32.const 1))
(global $STDOUT                                                  i32 (i32.const 2))
(global $STDERR                                                  i32 (i32.const 3))
(global $FILE                                                    i32 (i32.const 4)) ;; opened by the guest: a file or a folder
(global $APPENDING                                               i32 (i32.const 5)) ;; a file, and every write goes to its end
(global $CLOSED                                                  i32 (i32.const 6))
(global $MOUNT                                                   i32 (i32.const 7))
(global $MAX_DESCRIPTORS    (export "MAX_DESCRIPTORS:const")     i32 (i32.const 4096))
(global $SIZES_MAX                                               i32 (i32.const 1024))

;; Errno values of WASI.
(global $SUCCESS                                                 i32 (i32.const 0))
(global $EACCES                                                  i32 (i32.const 2))
(global $EAGAIN                                                  i32 (i32.const 6))
(global $EBADF                                                   i32 (i32.const 8))
(global $EDQUOT                                                  i32 (i32.const 19))
(global $EEXIST                                                  i32 (i32.const 20))
(global $EFBIG                                                   i32 (i32.const 22))
(global $EINTR                                                   i32 (i32.const 27))
(global $EINVAL                                                  i32 (i32.const 28))
(global $EISDIR                                                  i32 (i32.const 31))
(global $EMFILE                                                  i32 (i32.const 33))
(global $ENAMETOOLONG                                            i32 (i32.const 37))
(global $ENOENT                                                  i32 (i32.const 44))
(global $ENOTDIR                                                 i32 (i32.const 54))
(global $ENOTSOCK                                                i32 (i32.const 57))
(global $ENOTSUP                                                 i32 (i32.const 58))
(global $EPERM                                                   i32 (i32.const 63))
(global $EROFS                                                   i32 (i32.const 69))
(global $ENOTCAPABLE                                             i32 (i32.const 76))

;; Flags and types of WASI.
(global $O_CREAT                                                 i32 (i32.const 1))
(global $O_DIRECTORY                                             i32 (i32.const 2))
(global $O_EXCL                                                  i32 (i32.const 4))
(global $FD_APPEND                                               i32 (i32.const 1))
(global $RIGHT_READ                                              i32 (i32.const 0x02))
(global $RIGHT_WRITE                                             i32 (i32.const 0x40))
(global $NOFOLLOW                                                i32 (i32.const 0)) ;; lookup flags
(global $FOLLOW                                                  i32 (i32.const 1))
(global $FOLDER                                                  i32 (i32.const 3)) ;; types of files
(global $REGULAR                                                 i32 (i32.const 4))
(global $LINK                                                    i32 (i32.const 7))

;; As POSIX: the most buffers that one read or write may name, a bound like it for one poll, and for a path.
(global $IOV_MAX            (export "IOV_MAX:const")             i32 (i32.const 1024))
(global $POLL_MAX           (export "POLL_MAX:const")            i32 (i32.const 1024))
(global $PATH_MAX           (export "PATH_MAX:const")            i32 (i32.const 4096))
;; The most bytes that one read or write moves: it may be short, as POSIX allows, so that none takes long.
(global $IO_MAX             (export "IO_MAX:const")              i32 (i32.const 1048576))
;; How much of its data is copied at once.
(global $PIECE                                                   i32 (i32.const 65536))
(global $SUBSCRIPTION_SIZE                                       i32 (i32.const 48))
(global $EVENT_SIZE                                              i32 (i32.const 32))
(global $FILESTAT_SIZE                                           i32 (i32.const 64))
(global $FDSTAT_SIZE                                             i32 (i32.const 24))
(global $DIRENT_SIZE                                             i32 (i32.const 24))

;; -- the guest's memory: the only functions that touch it, but for $append, clock_time_get and memory_grow --------------

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

;; Copies a path of the guest's in. Returns 0, or ENAMETOOLONG.
(func $take_path (param $place i32) (param $address i32) (param $size i32) (result i32)
  (call $check (local.get $address) (i64.extend_i32_u (local.get $size)) (i32.const 1))
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
  (local $entry i32) (local $left i32) (local $bit i32) (local $count i32) (local $kept i32) (local $now i64)
  (local.set $kept (local.get $size))
  (if (i32.gt_u (local.get $kept) (global.get $SUBJECT_MAX)) (then (local.set $kept (global.get $SUBJECT_MAX))))
  (local.set $now (call $stamp))
  (call $note_event (local.get $kind) (local.get $number) (local.get $path) (local.get $size) (local.get $kept)
    (local.get $limit) (local.get $observed) (local.get $action) (local.get $errno) (local.get $now))
  (local.set $entry (global.get $violations))
  (local.set $count (i32.load $state (global.get $violation_count)))
  (local.set $left (local.get $count))
  (block $new
    (loop $next
      (br_if $new (i32.eqz (local.get $left)))
      (if (call $is_entry (local.get $entry) (local.get $kind) (local.get $number) (local.get $path) (local.get $size)
            (local.get $kept))
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
  (i32.store $state offset=44 (local.get $entry) (local.get $action))
  (memory.copy $state $state (i32.add (local.get $entry) (global.get $SUBJECT)) (local.get $path) (local.get $kept))
  (i64.store $state offset=32 (local.get $entry) (local.get $now))
  (i32.store $state (global.get $violation_count) (i32.add (local.get $count) (i32.const 1))))

;; Writes an event into the ring.
(func $note_event (param $kind i32) (param $number i32) (param $path i32) (param $size i32) (param $kept i32)
  (param $limit i64) (param $observed i64) (param $action i32) (param $errno i32) (param $now i64)
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
  (memory.copy $state $state (i32.add (local.get $entry) (global.get $SUBJECT)) (local.get $path) (local.get $kept))
  (call $add (global.get $event_count) (i64.const 1)))

;; Whether an entry is about the same.
(func $is_entry (param $entry i32) (param $kind i32) (param $number i32) (param $path i32) (param $size i32)
  (param $kept i32) (result i32)
  (local $subject i32)
  (if (i32.ne (i32.load $state (local.get $entry)) (local.get $kind)) (then (return (i32.const 0))))
  (if (i32.ne (i32.load $state offset=4 (local.get $entry)) (local.get $number)) (then (return (i32.const 0))))
  (if (i32.ne (i32.load $state offset=40 (local.get $entry)) (local.get $size)) (then (return (i32.const 0))))
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
  (call $set_known_size (local.get $fd) (i64.const 0)))

;; How many bytes the file behind a descriptor is known to have had, all of which it had before the run or were counted
;; as written. What is written up to there makes no more of it.
(func $known_size (param $fd i32) (result i64)
  (if (i32.ge_u (local.get $fd) (global.get $SIZES_MAX)) (then (return (i64.const 0))))
  (i64.load $state (i32.add (global.get $sizes) (i32.shl (local.get $fd) (i32.const 3)))))

(func $set_known_size (param $fd i32) (param $size i64)
  (if (i32.lt_u (local.get $fd) (global.get $SIZES_MAX))
    (then (i64.store $state (i32.add (global.get $sizes) (i32.shl (local.get $fd) (i32.const 3))) (local.get $size)))))

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

;; -- reading and writing files ------------------------------------------------------------------------------------------

;; The native read or write that a call stands for, of so many bytes at the guard's I/O buffer; the count stands in the
;; answer.
(func $native_io (param $number i32) (param $fd i32) (param $size i32) (param $offset i64) (result i32)
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
  (local $errno i32) (local $kind i32) (local $size i64)
  (if (local.tee $errno (call $enter (global.get $N.fd_renumber))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $native.fd_renumber (local.get $from) (local.get $to))) (then (return (local.get $errno))))
  (if (i32.eq (local.get $from) (local.get $to)) (then (return (global.get $SUCCESS))))
  (call $forget (local.get $to))
  (local.set $kind (call $kind (local.get $from)))
  (local.set $size (call $known_size (local.get $from)))
  (call $set_kind (local.get $to) (local.get $kind))
  (call $set_known_size (local.get $to) (local.get $size))
  (call $set_kind (local.get $from) (global.get $CLOSED))
  (call $set_known_size (local.get $from) (i64.const 0))
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

;; -- paths ----------------------------------------------------------------------------------------------------------

;; Whether something may be made at a path in $state; if not, an errno: native WASI's, where that would not make it
;; anyway.
(func $check_create (param $number i32) (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (i32.and
        (i32.load $state (global.get $may_create))
        (i64.ne (i64.load $state (global.get $created_left)) (i64.const 0)))
    (then (return (global.get $SUCCESS))))
  (if (local.tee $errno (call $unmakeable (local.get $fd) (local.get $path) (local.get $size)))
    (then (return (call $judge (local.get $number) (local.get $errno) (local.get $path) (local.get $size)))))
  (call $refuse_create (local.get $number) (local.get $path) (local.get $size)))

;; The violation of making something where that is off, or one too many.
(func $refuse_create (param $number i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32) (local $limit i64)
  (if (i32.eqz (i32.load $state (global.get $may_create)))
    (then
      (if (local.tee $errno
            (call $refuse_path (global.get $KIND_create) (local.get $number) (local.get $path) (local.get $size)
              (i64.const 0) (i64.const 0) (global.get $EPERM)))
        (then (return (local.get $errno))))))
  (if (i64.ne (i64.load $state (global.get $created_left)) (i64.const 0)) (then (return (global.get $SUCCESS))))
  (local.set $limit (i64.load $state (global.get $created_limit)))
  (call $refuse_path (global.get $KIND_files_created) (local.get $number) (local.get $path) (local.get $size)
    (local.get $limit) (i64.add (local.get $limit) (i64.const 1)) (global.get $EDQUOT)))

;; Reserves the making of one; returns what $not_created needs where native WASI does not make it.
(func $creating (result i64)
  (call $add (global.get $created) (i64.const 1))
  (call $spend (global.get $created_left) (i64.const 1)))

(func $not_created (param $spent i64)
  (call $add (global.get $created) (i64.const -1))
  (call $refund (global.get $created_left) (local.get $spent) (i64.const 0)))

;; After native WASI was asked to make something: settles, and passes on what it says.
(func $settle_create (param $number i32) (param $errno i32) (param $spent i64) (param $path i32) (param $size i32)
  (result i32)
  (if (i32.eqz (local.get $errno)) (then (return (global.get $SUCCESS))))
  (call $not_created (local.get $spent))
  (call $judge (local.get $number) (local.get $errno) (local.get $path) (local.get $size)))

(func $check_link (param $number i32) (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (i32.eqz (i32.load $state (global.get $may_link)))
    (then
      (if (local.tee $errno (call $unmakeable (local.get $fd) (local.get $path) (local.get $size)))
        (then (return (call $judge (local.get $number) (local.get $errno) (local.get $path) (local.get $size)))))
      (if (local.tee $errno
            (call $refuse_path (global.get $KIND_symlinks) (local.get $number) (local.get $path) (local.get $size)
              (i64.const 0) (i64.const 0) (global.get $EPERM)))
        (then (return (local.get $errno))))))
  (call $check_create (local.get $number) (local.get $fd) (local.get $path) (local.get $size)))

;; Whether what stands at a path may be removed, by a call that is for folders or for what is none.
(func $check_delete (param $number i32) (param $fd i32) (param $path i32) (param $size i32) (param $folder i32)
  (result i32)
  (local $errno i32)
  (if (i32.load $state (global.get $may_delete)) (then (return (global.get $SUCCESS))))
  (if (local.tee $errno
        (call $look (local.get $fd) (global.get $NOFOLLOW) (local.get $path) (local.get $size)))
    (then (return (call $judge (local.get $number) (local.get $errno) (local.get $path) (local.get $size)))))
  (if (i32.ne (i32.eq (call $type_found) (global.get $FOLDER)) (local.get $folder))
    (then (return (select (global.get $ENOTDIR) (global.get $EISDIR) (local.get $folder)))))
  (call $refuse_path (global.get $KIND_delete) (local.get $number) (local.get $path) (local.get $size) (i64.const 0)
    (i64.const 0) (global.get $EPERM)))

(func (export "path_create_directory") (param $fd i32) (param $name i32) (param $size i32) (result i32)
  (local $errno i32) (local $spent i64)
  (if (local.tee $errno (call $enter (global.get $N.path_create_directory))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $check_create (global.get $N.path_create_directory) (local.get $fd) (global.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (local.set $spent (call $creating))
  (call $settle_create (global.get $N.path_create_directory)
    (call $native.path_create_directory (local.get $fd) (global.get $path) (local.get $size))
    (local.get $spent) (global.get $path) (local.get $size)))

(func (export "path_filestat_get") (param $fd i32) (param $flags i32) (param $name i32) (param $size i32)
  (param $filestat i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.path_filestat_get))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  (call $begin_answer (local.get $filestat) (global.get $FILESTAT_SIZE) (i32.const 8))
  (if (local.tee $errno
        (call $judge (global.get $N.path_filestat_get)
          (call $look (local.get $fd) (local.get $flags) (global.get $path) (local.get $size))
          (global.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $give_filestat (local.get $filestat))
  (global.get $SUCCESS))

(func (export "path_filestat_set_times") (param $fd i32) (param $flags i32) (param $name i32) (param $size i32)
  (param $accessed i64) (param $modified i64) (param $what i32) (result i32)
  (local $errno i32) (local $times i32)
  (if (local.tee $errno (call $enter (global.get $N.path_filestat_set_times))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  ;; Native WASI opens what it is to change.
  (if (i32.eqz (call $may_open (local.get $fd) (local.get $flags) (local.get $size)))
    (then
      (return
        (call $judge (global.get $N.path_filestat_set_times) (global.get $EACCES) (global.get $path)
          (local.get $size)))))
  (loop $again
    (local.set $times (call $begin_open (local.get $times)))
    (local.set $errno
      (call $native.path_filestat_set_times (local.get $fd) (local.get $flags) (global.get $path) (local.get $size)
        (local.get $accessed) (local.get $modified) (local.get $what)))
    (local.set $errno
      (call $end_open (local.get $errno) (local.get $fd) (local.get $flags) (local.get $size)))
    (br_if $again (i32.eq (local.get $errno) (global.get $EINTR))))
  (call $judge (global.get $N.path_filestat_set_times) (local.get $errno) (global.get $path) (local.get $size)))

(func (export "path_link") (param $old_fd i32) (param $flags i32) (param $old i32) (param $old_size i32)
  (param $new_fd i32) (param $new i32) (param $new_size i32) (result i32)
  (local $errno i32) (local $spent i64)
  (if (local.tee $errno (call $enter (global.get $N.path_link))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path2) (local.get $old) (local.get $old_size)))
    (then (return (local.get $errno))))
  (if (i32.eqz (i32.and (i32.load $state (global.get $may_link)) (i32.load $state (global.get $may_create))))
    (then
      (if (local.tee $errno
            (call $look (local.get $old_fd) (local.get $flags) (global.get $path2) (local.get $old_size)))
        (then
          (return
            (call $judge (global.get $N.path_link) (local.get $errno) (global.get $path2) (local.get $old_size)))))))
  (if (local.tee $errno
        (call $check_link (global.get $N.path_link) (local.get $new_fd) (global.get $path) (local.get $new_size)))
    (then (return (local.get $errno))))
  (local.set $spent (call $creating))
  (call $settle_create (global.get $N.path_link)
    (call $native.path_link (local.get $old_fd) (local.get $flags) (global.get $path2) (local.get $old_size)
      (local.get $new_fd) (global.get $path) (local.get $new_size))
    (local.get $spent) (global.get $path) (local.get $new_size)))

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
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  (if (i64.ge_u (i64.load $state (global.get $open_now)) (i64.load $state (global.get $open_limit)))
    (then
      (if (local.tee $errno
            (call $refuse_open (local.get $fd) (local.get $lookup) (local.get $size) (local.get $flags)))
        (then (return (local.get $errno))))))
  (if (i32.eqz (call $may_open (local.get $fd) (local.get $lookup) (local.get $size)))
    (then
      (return (call $judge (global.get $N.path_open) (global.get $EACCES) (global.get $path) (local.get $size)))))
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
  (if (i32.and (local.get $fdflags) (global.get $FD_APPEND))
    (then
      (if (i32.eqz (call $may_append (local.get $new)))
        (then
          (call $set_kind (local.get $new) (global.get $CLOSED))
          (return (global.get $EACCES))))))
  (global.get $SUCCESS))

(func (export "path_readlink") (param $fd i32) (param $name i32) (param $size i32) (param $buffer i32)
  (param $buffer_size i32) (param $used i32) (result i32)
  (local $errno i32) (local $got i32)
  (if (local.tee $errno (call $enter (global.get $N.path_readlink))) (then (return (local.get $errno))))
  (call $check (local.get $used) (i64.const 4) (i32.const 4))
  (call $check (local.get $buffer) (i64.extend_i32_u (local.get $buffer_size)) (i32.const 1))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  (if (i32.gt_u (local.get $buffer_size) (global.get $PATH_MAX))
    (then (local.set $buffer_size (global.get $PATH_MAX))))
  (if (local.tee $errno
        (call $judge (global.get $N.path_readlink)
          (call $native.path_readlink (local.get $fd) (global.get $path) (local.get $size) (global.get $path2)
            (local.get $buffer_size) (global.get $result))
          (global.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (local.set $got (i32.load $state (global.get $result)))
  (call $to_guest (local.get $buffer) (global.get $path2) (local.get $got))
  (call $put_u32 (local.get $used) (local.get $got))
  (global.get $SUCCESS))

(func (export "path_remove_directory") (param $fd i32) (param $name i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.path_remove_directory))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $check_delete (global.get $N.path_remove_directory) (local.get $fd) (global.get $path) (local.get $size)
          (i32.const 1)))
    (then (return (local.get $errno))))
  (call $add (global.get $deleted) (i64.const 1))
  (call $settle_delete (global.get $N.path_remove_directory)
    (call $native.path_remove_directory (local.get $fd) (global.get $path) (local.get $size))
    (global.get $path) (local.get $size)))

(func (export "path_unlink_file") (param $fd i32) (param $name i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (global.get $N.path_unlink_file))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $name) (local.get $size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $check_delete (global.get $N.path_unlink_file) (local.get $fd) (global.get $path) (local.get $size)
          (i32.const 0)))
    (then (return (local.get $errno))))
  (call $add (global.get $deleted) (i64.const 1))
  (call $settle_delete (global.get $N.path_unlink_file)
    (call $native.path_unlink_file (local.get $fd) (global.get $path) (local.get $size))
    (global.get $path) (local.get $size)))

;; After native WASI was asked to remove something: settles, and passes on what it says.
(func $settle_delete (param $number i32) (param $errno i32) (param $path i32) (param $size i32) (result i32)
  (if (i32.eqz (local.get $errno)) (then (return (global.get $SUCCESS))))
  (call $add (global.get $deleted) (i64.const -1))
  (call $judge (local.get $number) (local.get $errno) (local.get $path) (local.get $size)))

;; To rename is to remove one name and to make another, and needs both rights. Only a name that it replaces counts as
;; removed.
(func (export "path_rename") (param $old_fd i32) (param $old i32) (param $old_size i32) (param $new_fd i32)
  (param $new i32) (param $new_size i32) (result i32)
  (local $errno i32) (local $replaced i32) (local $inode i64)
  (if (local.tee $errno (call $enter (global.get $N.path_rename))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path2) (local.get $old) (local.get $old_size)))
    (then (return (local.get $errno))))
  (if (i32.eqz (i32.and (i32.load $state (global.get $may_create)) (i32.load $state (global.get $may_delete))))
    (then
      (if (local.tee $errno
            (call $refuse_rename (local.get $old_fd) (local.get $old_size) (local.get $new_fd) (local.get $new_size)))
        (then (return (local.get $errno))))))
  ;; Something that has the same inode is the same, and a rename onto itself removes nothing.
  (if (i32.eqz (call $look (local.get $new_fd) (global.get $NOFOLLOW) (global.get $path) (local.get $new_size)))
    (then
      (local.set $inode (i64.load $state offset=8 (global.get $result)))
      (local.set $replaced
        (i32.or
          (i32.ne (call $look (local.get $old_fd) (global.get $NOFOLLOW) (global.get $path2) (local.get $old_size))
                  (global.get $SUCCESS))
          (i64.ne (i64.load $state offset=8 (global.get $result)) (local.get $inode))))))
  (call $add (global.get $deleted) (i64.extend_i32_u (local.get $replaced)))
  (if (local.tee $errno
        (call $native.path_rename (local.get $old_fd) (global.get $path2) (local.get $old_size) (local.get $new_fd)
          (global.get $path) (local.get $new_size)))
    (then
      (call $add (global.get $deleted) (i64.sub (i64.const 0) (i64.extend_i32_u (local.get $replaced))))
      (return (call $judge (global.get $N.path_rename) (local.get $errno) (global.get $path) (local.get $new_size)))))
  (global.get $SUCCESS))

;; The violation of renaming without one of the rights, unless native WASI finds nothing to rename, or no folder to put it.
(func $refuse_rename (param $old_fd i32) (param $old_size i32) (param $new_fd i32) (param $new_size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno
        (call $look (local.get $old_fd) (global.get $NOFOLLOW) (global.get $path2) (local.get $old_size)))
    (then
      (return (call $judge (global.get $N.path_rename) (local.get $errno) (global.get $path2) (local.get $old_size)))))
  (local.set $errno (call $unmakeable (local.get $new_fd) (global.get $path) (local.get $new_size)))
  (if (i32.and (i32.ne (local.get $errno) (global.get $SUCCESS)) (i32.ne (local.get $errno) (global.get $EEXIST)))
    (then
      (return (call $judge (global.get $N.path_rename) (local.get $errno) (global.get $path) (local.get $new_size)))))
  (if (i32.eqz (i32.load $state (global.get $may_create)))
    (then
      (if (local.tee $errno
            (call $refuse_path (global.get $KIND_create) (global.get $N.path_rename) (global.get $path)
              (local.get $new_size) (i64.const 0) (i64.const 0) (global.get $EPERM)))
        (then (return (local.get $errno))))))
  (if (i32.load $state (global.get $may_delete)) (then (return (global.get $SUCCESS))))
  (call $refuse_path (global.get $KIND_delete) (global.get $N.path_rename) (global.get $path2) (local.get $old_size)
    (i64.const 0) (i64.const 0) (global.get $EPERM)))

(func (export "path_symlink") (param $old i32) (param $old_size i32) (param $fd i32) (param $new i32)
  (param $new_size i32) (result i32)
  (local $errno i32) (local $spent i64)
  (if (local.tee $errno (call $enter (global.get $N.path_symlink))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_path (global.get $path2) (local.get $old) (local.get $old_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $check_link (global.get $N.path_symlink) (local.get $fd) (global.get $path) (local.get $new_size)))
    (then (return (local.get $errno))))
  (local.set $spent (call $creating))
  (call $settle_create (global.get $N.path_symlink)
    (call $native.path_symlink (global.get $path2) (local.get $old_size) (local.get $fd) (global.get $path)
      (local.get $new_size))
    (local.get $spent) (global.get $path) (local.get $new_size)))

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

;; Before a function that the embedder lends. It has no errno to be refused with, so that beyond a limit the run ends.
(func (export "host_call")
  (if (call $enter (global.get $HOST)) (then (call $end_run (global.get $STOP_DENIED)))))

;; -- growth ---------------------------------------------------------------------------------------------------------

;; Growth is refused: notes it, and ends the run where the policy says so. A guest may ignore the -1 it gets, the report
;; does not.
(func $refuse_growth (param $refusals i32) (param $most i32) (param $asked i64)
  (call $add (local.get $refusals) (i64.const 1))
  (call $keep_max (local.get $most) (local.get $asked))
  (if (i32.load $state (global.get $on_memory)) (then (call $end_run (global.get $STOP_MEMORY)))))

;; Asks whether memories and tables may have so many bytes more, and have them now.
(func $may_have (param $bytes i64) (param $refusals i32) (param $rate_refusals i32) (result i32)
  (local $asked i64)
  (local.set $asked (call $sum (i64.load $state (global.get $memory_used)) (local.get $bytes)))
  (if (i64.gt_u (local.get $asked) (i64.load $state (global.get $memory_limit)))
    (then
      (call $refuse_growth (local.get $refusals) (global.get $memory_asked) (local.get $asked))
      (return (i32.const 0))))
  (if (i64.gt_u (local.get $bytes) (i64.load $state (global.get $growth_tokens)))
    (then
      ;; The host may not have looked for a while.
      (call $wait (global.get $HOST) (global.get $FOR_NOW))
      (if (i64.gt_u (local.get $bytes) (i64.load $state (global.get $growth_tokens)))
        (then
          (call $refuse_growth (local.get $rate_refusals) (global.get $growth_asked)
            (call $sum
              (call $beyond (i64.load $state (global.get $growth_rate)) (i64.load $state (global.get $growth_tokens)))
              (local.get $bytes)))
          (return (i32.const 0))))))
  (i32.const 1))

;; After a memory or table was to grow by bytes that were reserved: settles.
(func $settle_growth (param $before i32) (param $bytes i64)
  (if (i32.eq (local.get $before) (i32.const -1))
    (then (call $add (global.get $memory_used) (i64.sub (i64.const 0) (local.get $bytes))))
    (else (drop (call $spend (global.get $growth_tokens) (local.get $bytes))))))

;; The weaver makes a copy of this for each memory that the guest grows.
(func (export "memory_grow") (param $pages i32) (result i32)
  (local $bytes i64) (local $before i32)
  (local.set $bytes (i64.shl (i64.extend_i32_u (local.get $pages)) (i64.const 16)))
  (if (i32.eqz (call $may_have (local.get $bytes) (global.get $memory_refusals) (global.get $growth_refusals)))
    (then (return (i32.const -1))))
  (call $add (global.get $memory_used) (local.get $bytes))
  (local.set $before (memory.grow $guest (local.get $pages)))
  (call $settle_growth (local.get $before) (local.get $bytes))
  (local.get $before))

(func $may_have_elements (param $more i32) (result i32)
  (local $asked i64)
  (local.set $asked (i64.add (i64.load $state (global.get $table_used)) (i64.extend_i32_u (local.get $more))))
  (if (i64.gt_u (local.get $asked) (i64.load $state (global.get $table_limit)))
    (then
      (call $refuse_growth (global.get $table_refusals) (global.get $table_asked) (local.get $asked))
      (return (i32.const 0))))
  (call $may_have (call $element_bytes (local.get $more)) (global.get $table_memory_refusals)
    (global.get $table_growth_refusals)))

(func $element_bytes (param $elements i32) (result i64)
  (i64.shl (i64.extend_i32_u (local.get $elements)) (i64.const 3)))

(func $growing_table (param $more i32)
  (call $add (global.get $table_used) (i64.extend_i32_u (local.get $more)))
  (call $add (global.get $memory_used) (call $element_bytes (local.get $more))))

;; After a table was to grow: settles, and passes on what it says.
(func $settle_table (param $before i32) (param $more i32) (result i32)
  (if (i32.eq (local.get $before) (i32.const -1))
    (then (call $add (global.get $table_used) (i64.sub (i64.const 0) (i64.extend_i32_u (local.get $more))))))
  (call $settle_growth (local.get $before) (call $element_bytes (local.get $more)))
  (local.get $before))

;; The weaver makes a copy of one of these for each table that the guest grows.
(func (export "funcref_table_grow") (param $value funcref) (param $more i32) (result i32)
  (if (i32.eqz (call $may_have_elements (local.get $more))) (then (return (i32.const -1))))
  (call $growing_table (local.get $more))
  (call $settle_table (table.grow $guest.funcrefs (local.get $value) (local.get $more)) (local.get $more)))

(func (export "externref_table_grow") (param $value externref) (param $more i32) (result i32)
  (if (i32.eqz (call $may_have_elements (local.get $more))) (then (return (i32.const -1))))
  (call $growing_table (local.get $more))
  (call $settle_table (table.grow $guest.externrefs (local.get $value) (local.get $more)) (local.get $more)))
)
