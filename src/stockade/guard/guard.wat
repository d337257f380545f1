;; The guard: the policy, as WebAssembly.
;;
;; This module is woven into every guest (see _weave.py). Each call that the guest makes to WASI lands in the function
;; of that name here, which counts it, asks the policy, and then passes it on to native WASI, serves it from the guard's
;; own memory, or refuses it. memory.grow and table.grow of the guest land in functions of growth.wat. The other files of
;; this folder are the inside of the same module, each about one thing.
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
;; the instance, `call` fields begin anew with each call of a session, `note` fields mean nothing while guest code runs. The
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
(memory $state (export "memory") 2)

;; -- layout of $state -----------------------------------------------------------------------------------------------

(global $kinds                 (export "kinds:u8[4096]:session")      i32 (i32.const 0)) ;; what became of each descriptor, see below
(global $violations            (export "violations:u8:call")          i32 (i32.const 4096)) ;; VIOLATIONS_MAX entries, see $record
(global $events                (export "events:u8:call")              i32 (i32.const 12288)) ;; a ring of EVENTS_MAX entries, see $note_event
(global $mailbox               (export "mailbox:u8[8192]:note")       i32 (i32.const 16384)) ;; a call of a function of the embedder, and its answer: see rest.wat
(global $sizes                                                        i32 (i32.const 24576)) ;; of each descriptor below SIZES_MAX, bytes that its file is known to have, u64
(global $path                  (export "path:u8[4096]:note")          i32 (i32.const 32768)) ;; a path, on its way to native WASI
(global $path2                                                        i32 (i32.const 36864)) ;; a second one
(global $result                                                       i32 (i32.const 40960)) ;; what native WASI answers, up to 64 bytes
(global $iovec                                                        i32 (i32.const 41024)) ;; the buffer of one native read or write: address and length
(global $moment                                                       i32 (i32.const 41032)) ;; what a native clock answers

;; The policy, which the host writes before the guest's first instruction. A limit of 2^64-1 is no limit.

(global $block                 (export "block:u8:policy")             i32 (i32.const 41040)) ;; the host writes and reads from here
(global $memory_limit          (export "memory_limit:u64:policy")     i32 (i32.const 41040)) ;; bytes that all memories and tables may have together
(global $table_limit           (export "table_limit:u64:policy")      i32 (i32.const 41048)) ;; elements that all tables may have together
(global $growth_rate           (export "growth_rate:u64:policy")      i32 (i32.const 41056)) ;; bytes by which memories and tables may grow in a second
(global $calls_limit           (export "calls_limit:u64:policy")      i32 (i32.const 41064)) ;; WASI calls
(global $call_rate             (export "call_rate:u64:policy")        i32 (i32.const 41072)) ;; WASI calls in a second
(global $open_limit            (export "open_limit:u64:policy")       i32 (i32.const 41080)) ;; files and folders open at a time
(global $created_limit         (export "created_limit:u64:policy")    i32 (i32.const 41088)) ;; files, folders and links created
(global $file_size_limit       (export "file_size_limit:u64:policy")  i32 (i32.const 41096)) ;; bytes that a file may reach by writing
(global $read_limit            (export "read_limit:u64:policy")       i32 (i32.const 41104)) ;; bytes read from files
(global $write_limit           (export "write_limit:u64:policy")      i32 (i32.const 41112)) ;; bytes written to files
(global $read_rate             (export "read_rate:u64:policy")        i32 (i32.const 41120)) ;; bytes read in a second
(global $write_rate            (export "write_rate:u64:policy")       i32 (i32.const 41128)) ;; bytes written in a second
(global $random_limit          (export "random_limit:u64:policy")     i32 (i32.const 41136)) ;; random bytes
(global $clock_resolution      (export "clock_resolution:u64:policy") i32 (i32.const 41144)) ;; nanoseconds to which a coarse clock is cut
(global $clock_step            (export "clock_step:u64:policy")       i32 (i32.const 41152)) ;; nanoseconds that a virtual clock advances each time it is read
(global $clock_start           (export "clock_start:u64:policy")      i32 (i32.const 41160)) ;; time of day at which a virtual clock starts, nanoseconds since 1970
(global $clock_mode            (export "clock_mode:u32:policy")       i32 (i32.const 41168)) ;; CLOCK_REAL, CLOCK_COARSE, CLOCK_VIRTUAL or CLOCK_NONE
(global $random_mode           (export "random_mode:u32:policy")      i32 (i32.const 41172)) ;; RANDOM_NATIVE or RANDOM_SEEDED
(global $on_violation          (export "on_violation:u32:policy")     i32 (i32.const 41176)) ;; DENY, STOP or AUDIT
(global $on_rate               (export "on_rate:u32:policy")          i32 (i32.const 41180)) ;; WAIT or REFUSE, where a rate is exceeded
(global $on_memory             (export "on_memory:u32:policy")        i32 (i32.const 41184)) ;; why refused growth ends the run, as in $stop; 0: it does not
(global $may_create            (export "may_create:u32:policy")       i32 (i32.const 41188)) ;; 1: files and folders may be created
(global $may_delete            (export "may_delete:u32:policy")       i32 (i32.const 41192)) ;; 1: files and folders may be removed
(global $may_link              (export "may_link:u32:policy")         i32 (i32.const 41196)) ;; 1: symbolic and hard links may be made
(global $has_clock             (export "has_clock:u32:policy")        i32 (i32.const 41200)) ;; 1: native clocks are in reach
(global $look_first            (export "look_first:u32:policy")       i32 (i32.const 41204)) ;; 1: a path is looked at before it is opened, for opening a FIFO may take for ever
(global $mounts                (export "mounts:u32:policy")           i32 (i32.const 41208)) ;; how many descriptors from 3 on are mounts
(global $stdin                 (export "stdin:u32:policy")            i32 (i32.const 41212)) ;; where stdin's bytes stand
(global $args                  (export "args:u32:policy")             i32 (i32.const 41216)) ;; arguments, each ended by a zero byte
(global $args_count            (export "args_count:u32:policy")       i32 (i32.const 41220)) ;; how many
(global $args_size             (export "args_size:u32:policy")        i32 (i32.const 41224)) ;; their bytes in all, zero bytes included
(global $environ               (export "environ:u32:policy")          i32 (i32.const 41228)) ;; NAME=value, each ended by a zero byte
(global $environ_count         (export "environ_count:u32:policy")    i32 (i32.const 41232)) ;; how many
(global $environ_size          (export "environ_size:u32:policy")     i32 (i32.const 41236)) ;; their bytes in all
(global $tap                   (export "tap:u32:policy")              i32 (i32.const 41240)) ;; where the ring of output for the host lies; 0: nobody listens
(global $tap_size              (export "tap_size:u32:policy")         i32 (i32.const 41244)) ;; its bytes, a power of two
(global $scratch               (export "scratch:u32:policy")          i32 (i32.const 41248)) ;; where free room begins, above everything else
(global $rules                 (export "rules:u8[64]:policy")         i32 (i32.const 41252)) ;; by call number: 0, or the errno that refuses it
(global $shares_heap           (export "shares_heap:u32:policy")      i32 (i32.const 41316)) ;; 1: memories grow beside a heap that the engine collects

;; What lives as long as the instance: what is left of quotas, and what is held.

(global $credit                (export "credit:u64:session")          i32 (i32.const 41320)) ;; calls that may be made before calls_left and call_tokens are looked at
(global $calls_left            (export "calls_left:u64:session")      i32 (i32.const 41328)) ;; calls that may be made beyond the credit
(global $calls_over            (export "calls_over:u64:session")      i32 (i32.const 41336)) ;; calls that were made beyond the limit, where the policy only audits
(global $call_tokens           (export "call_tokens:u64:session")     i32 (i32.const 41344)) ;; calls that may be made at once; the host adds to it as time goes by, and to the next three
(global $read_tokens           (export "read_tokens:u64:session")     i32 (i32.const 41352)) ;; bytes that may be read at once
(global $write_tokens          (export "write_tokens:u64:session")    i32 (i32.const 41360)) ;; bytes that may be written at once
(global $growth_tokens         (export "growth_tokens:u64:session")   i32 (i32.const 41368)) ;; bytes by which memories and tables may grow at once
(global $read_left             (export "read_left:u64:session")       i32 (i32.const 41376)) ;; bytes that may be read
(global $write_left            (export "write_left:u64:session")      i32 (i32.const 41384)) ;; bytes that may be written
(global $created_left          (export "created_left:u64:session")    i32 (i32.const 41392)) ;; files, folders and links that may be created
(global $random_left           (export "random_left:u64:session")     i32 (i32.const 41400)) ;; random bytes that may be handed out
(global $stdin_size            (export "stdin_size:u32:session")      i32 (i32.const 41408)) ;; how many bytes of stdin stand in place
(global $stdin_mode            (export "stdin_mode:u32:session")      i32 (i32.const 41412)) ;; STDIN_BYTES, that is all; STDIN_ASKED, the host is asked for more
(global $stdin_read            (export "stdin_read:u32:session")      i32 (i32.const 41416)) ;; of the bytes in place, how many the guest has taken
(global $virtual_now           (export "virtual_now:u64:session")     i32 (i32.const 41424)) ;; nanoseconds on the virtual clock
(global $random_state          (export "random_state:u64:session")    i32 (i32.const 41432)) ;; of the seeded generator; the host writes the seed
(global $tap_written           (export "tap_written:u64:session")     i32 (i32.const 41440)) ;; bytes put into the ring of output, frames and their heads
(global $tap_read              (export "tap_read:u64:session")        i32 (i32.const 41448)) ;; of these, taken out by the host
(global $memory_used           (export "memory_used:u64:session")     i32 (i32.const 41456)) ;; bytes that memories and tables have: never shrinks; the host writes what they begin with
(global $table_used            (export "table_used:u64:session")      i32 (i32.const 41464)) ;; the same, elements of tables
(global $open_now              (export "open_now:u64:session")        i32 (i32.const 41472)) ;; files and folders open

;; What is told of one call, and begins anew with the next. An output stream is four numbers: base, head, cap (each u32)
;; and total (u64). Its first cap bytes land in [base, base+cap) in order; of what follows, the part [head, cap) keeps the
;; newest. So the beginning and the end of the output are kept, and total tells how much there was.

(global $stdout                (export "stdout:stream:call")          i32 (i32.const 41480)) ;; the captured output
(global $stderr                (export "stderr:stream:call")          i32 (i32.const 41504)) ;; the same of stderr
(global $exited                (export "exited:u32:call")             i32 (i32.const 41528)) ;; 1: the guest called proc_exit
(global $exit_code             (export "exit_code:u32:call")          i32 (i32.const 41532)) ;; with this
(global $stop                  (export "stop:u32:call")               i32 (i32.const 41536)) ;; why the guard ended the run, see below
(global $violation_count       (export "violation_count:u32:call")    i32 (i32.const 41540)) ;; entries in $violations
(global $violation_kinds       (export "violation_kinds:u32:call")    i32 (i32.const 41544)) ;; a bit for each kind that has an entry
(global $memory_refusals       (export "memory_refusals:u64:call")    i32 (i32.const 41552)) ;; growths refused by memory_limit
(global $memory_asked          (export "memory_asked:u64:call")       i32 (i32.const 41560)) ;; the most bytes asked for in vain
(global $table_refusals        (export "table_refusals:u64:call")     i32 (i32.const 41568)) ;; growths refused by table_limit
(global $table_asked           (export "table_asked:u64:call")        i32 (i32.const 41576)) ;; the most elements asked for in vain
(global $table_memory_refusals (export "table_memory_refusals:u64:call") i32 (i32.const 41584)) ;; growths of tables refused by memory_limit
(global $growth_refusals       (export "growth_refusals:u64:call")    i32 (i32.const 41592)) ;; growths of memories refused by growth_rate
(global $table_growth_refusals (export "table_growth_refusals:u64:call") i32 (i32.const 41600)) ;; growths of tables refused by growth_rate
(global $growth_asked          (export "growth_asked:u64:call")       i32 (i32.const 41608)) ;; the most bytes asked for at once in vain
(global $idle                  (export "idle:u64:call")               i32 (i32.const 41616)) ;; nanoseconds spent waiting, in poll_oneoff or for stdin; the host counts them
(global $read                  (export "read:u64:call")               i32 (i32.const 41624)) ;; bytes read from files
(global $written               (export "written:u64:call")            i32 (i32.const 41632)) ;; bytes written to files, and by which files grew without being written
(global $random                (export "random:u64:call")             i32 (i32.const 41640)) ;; random bytes handed out
(global $opened                (export "opened:u64:call")             i32 (i32.const 41648)) ;; files and folders opened
(global $open_peak             (export "open_peak:u64:call")          i32 (i32.const 41656)) ;; the most that were open at any time
(global $created               (export "created:u64:call")            i32 (i32.const 41664)) ;; files, folders and links created
(global $deleted               (export "deleted:u64:call")            i32 (i32.const 41672)) ;; files and folders removed
(global $violations_dropped    (export "violations_dropped:u64:call") i32 (i32.const 41680)) ;; violations that found no entry
(global $event_count           (export "event_count:u64:call")        i32 (i32.const 41688)) ;; events written, overwritten ones included
(global $calls                 (export "calls:u64[47]:call")          i32 (i32.const 41696)) ;; by call number: how often it was made
(global $denied                (export "denied:u64[47]:call")         i32 (i32.const 42072)) ;; and how often it was refused

;; Between the guard and the host, while the guest is halted.

(global $notes                 (export "notes:u8:note")               i32 (i32.const 42448)) ;; from here on nothing is read for reports
(global $host_now              (export "host_now:u64:note")           i32 (i32.const 42448)) ;; nanoseconds into the run, by the host, as of its last look
(global $wait_reason           (export "wait_reason:u32:note")        i32 (i32.const 42456)) ;; while the guest is parked: what wakes it, a sum of FOR_ reasons; else 0
(global $wait_call             (export "wait_call:u32:note")          i32 (i32.const 42460)) ;; the call that waits
(global $wait_nanoseconds      (export "wait_nanoseconds:u64:note")   i32 (i32.const 42464)) ;; FOR_TIME: how long at most
(global $wait_bucket           (export "wait_bucket:u32:note")        i32 (i32.const 42472)) ;; FOR_TOKENS: the address of the tokens
(global $wait_amount           (export "wait_amount:u64:note")        i32 (i32.const 42480)) ;; and how many there must be
(global $waited                (export "waited:u64:note")             i32 (i32.const 42488)) ;; nanoseconds that this wait has taken so far; the host counts them
(global $opening               (export "opening:u32:note")            i32 (i32.const 42496)) ;; while native WASI opens a path: for which time it was asked to; else 0
(global $starts                                                       i32 (i32.const 42500)) ;; where $path and $path2 begin, each u16: 1 for the first mount, and so on; 0 for anything else
;; The trace (see trace.wat). All of it is zero where nobody asked for one.

(global $trace_written         (export "trace_written:u64:session")   i32 (i32.const 42504)) ;; entries put into the ring
(global $trace_read            (export "trace_read:u64:session")      i32 (i32.const 42512)) ;; of these, taken out by the host
(global $trace_lost            (export "trace_lost:u64:session")      i32 (i32.const 42520)) ;; entries for which there was no room
(global $trace_now                                                    i32 (i32.const 42528)) ;; nanoseconds into the run when the clock was last read for it, u64
(global $trace                 (export "trace:u32:policy")            i32 (i32.const 42536)) ;; where the ring lies
(global $trace_slots           (export "trace_slots:u32:policy")      i32 (i32.const 42540)) ;; entries that it has room for, a power of two
(global $trace_slot_size       (export "trace_slot_size:u32:policy")  i32 (i32.const 42544)) ;; bytes of each
(global $trace_strings         (export "trace_strings:u32:policy")    i32 (i32.const 42548)) ;; bytes that are kept of each of its two texts
(global $trace_waits           (export "trace_waits:u32:policy")      i32 (i32.const 42552)) ;; 1: where the ring is full, the guest waits; else the entry is lost
(global $trace_rules           (export "trace_rules:u8[64]:policy")   i32 (i32.const 42556)) ;; by call number: 0, or TRACE_PLAIN, TRACE_SLOW or TRACE_TIMED
(global $granted               (export "granted:u32:policy")          i32 (i32.const 42620)) ;; where the lists of paths of mounts stand (see listed.wat); 0: no mount has one
(global $scopes                (export "scopes:u32:policy")           i32 (i32.const 42624)) ;; where the scope of each descriptor stands, u32 each
(global $found                                                        i32 (i32.const 42628)) ;; the scope of what the last path leads to, u32
(global $room                  (export "room:u8:note")                i32 (i32.const 42632)) ;; from here on the host places its data
