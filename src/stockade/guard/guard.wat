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

;; Not native: the engine binds this one to a function that halts the guest until the host wakes it (see $halt).
(import "wasi_snapshot_preview1" "poll_oneoff" (func $native.poll_oneoff (param i32 i32 i32 i32) (result i32)))

(import "wasi_snapshot_preview1" "proc_raise" (func $native.proc_raise (param i32) (result i32)))
(import "wasi_snapshot_preview1" "random_get" (func $native.random_get (param i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "sched_yield" (func $native.sched_yield (result i32)))

;; -- the guest, and the guard's own memory --------------------------------------------------------------------------

(import "guest" "memory" (memory $guest 0))
(import "guest" "funcref_table" (table $guest.funcrefs 0 funcref))
(import "guest" "externref_table" (table $guest.externrefs 0 externref))
(memory $state (export "memory") 2)

;; -- layout of $state: descriptors and violations -------------------------------------------------------------------

(global $kinds              (export "kinds:u8[4096]")            i32 (i32.const 0)) ;; what became of each descriptor, see below
(global $events             (export "events:u8")                  i32 (i32.const 12288)) ;; a ring of EVENTS_MAX entries, see $record
(global $violations         (export "violations:u8")             i32 (i32.const 4096)) ;; VIOLATIONS_MAX entries, see $violate

;; -- layout of $state: the policy block, written by the host --------------------------------------------------------
;; A limit of 2^64-1 is no limit.

(global $block              (export "block:u8")                  i32 (i32.const 16384)) ;; the host writes and reads from here
(global $memory_limit       (export "memory_limit:u64")          i32 (i32.const 16384)) ;; bytes that all memories and tables may have together
(global $table_limit        (export "table_limit:u64")           i32 (i32.const 16392)) ;; elements that all tables may have together
(global $calls_limit        (export "calls_limit:u64")           i32 (i32.const 16400)) ;; WASI calls in the run
(global $call_rate          (export "call_rate:u64")             i32 (i32.const 16408)) ;; WASI calls in a second
(global $open_limit         (export "open_limit:u64")            i32 (i32.const 16416)) ;; files and folders open at a time
(global $created_limit      (export "created_limit:u64")         i32 (i32.const 16424)) ;; files, folders and links created
(global $file_size_limit    (export "file_size_limit:u64")       i32 (i32.const 16432)) ;; bytes that a file may reach by writing
(global $read_limit         (export "read_limit:u64")            i32 (i32.const 16440)) ;; bytes read from files
(global $write_limit        (export "write_limit:u64")           i32 (i32.const 16448)) ;; bytes written to files
(global $read_rate          (export "read_rate:u64")             i32 (i32.const 16456)) ;; bytes read in a second
(global $write_rate         (export "write_rate:u64")            i32 (i32.const 16464)) ;; bytes written in a second
(global $random_limit       (export "random_limit:u64")          i32 (i32.const 16472)) ;; random bytes
(global $idle_limit         (export "idle_limit:u64")            i32 (i32.const 16480)) ;; nanoseconds of one wait, in poll_oneoff or for stdin
(global $growth_rate        (export "growth_rate:u64")      i32 (i32.const 16488)) ;; bytes by which memories and tables may grow in a second
(global $halt_for           (export "halt_for:u64")              i32 (i32.const 16496)) ;; nanoseconds for which the guest asks to be halted; the host reads it
(global $clock_resolution   (export "clock_resolution:u64")      i32 (i32.const 16504)) ;; nanoseconds to which a coarse clock is cut
(global $clock_step         (export "clock_step:u64")            i32 (i32.const 16512)) ;; nanoseconds that a virtual clock advances each time it is read
(global $clock_start        (export "clock_start:u64")           i32 (i32.const 16520)) ;; time of day at which a virtual clock starts, nanoseconds since 1970
(global $clock_mode         (export "clock_mode:u32")            i32 (i32.const 16528)) ;; CLOCK_REAL, CLOCK_COARSE or CLOCK_VIRTUAL
(global $random_mode        (export "random_mode:u32")           i32 (i32.const 16532)) ;; RANDOM_NATIVE or RANDOM_SEEDED
(global $on_violation       (export "on_violation:u32")          i32 (i32.const 16536)) ;; DENY, STOP or NOTE
(global $on_rate            (export "on_rate:u32")               i32 (i32.const 16540)) ;; WAIT or REFUSE, where a rate is exceeded
(global $on_memory          (export "on_memory:u32")             i32 (i32.const 16544)) ;; 1: refused growth ends the run
(global $may_create         (export "may_create:u32")            i32 (i32.const 16548)) ;; 1: files and folders may be created
(global $may_delete         (export "may_delete:u32")            i32 (i32.const 16552)) ;; 1: files and folders may be removed, or replaced by renaming
(global $may_link           (export "may_link:u32")              i32 (i32.const 16556)) ;; 1: symbolic and hard links may be made
(global $has_clock          (export "has_clock:u32")             i32 (i32.const 16560)) ;; 1: native clocks and waits are in reach; 0: the host keeps the time
(global $stdin              (export "stdin:u32")                 i32 (i32.const 16564)) ;; where stdin's bytes stand
(global $stdin_size         (export "stdin_size:u32")            i32 (i32.const 16568)) ;; how many there are
(global $stdin_mode         (export "stdin_mode:u32")            i32 (i32.const 16572)) ;; STDIN_BYTES, all is there; STDIN_ASKED, the host is asked for more
(global $args               (export "args:u32")                  i32 (i32.const 16576)) ;; arguments, each ended by a zero byte
(global $args_count         (export "args_count:u32")            i32 (i32.const 16580)) ;; how many
(global $args_size          (export "args_size:u32")             i32 (i32.const 16584)) ;; their bytes in all, zero bytes included
(global $environ            (export "environ:u32")               i32 (i32.const 16588)) ;; NAME=value, each ended by a zero byte
(global $environ_count      (export "environ_count:u32")         i32 (i32.const 16592)) ;; how many
(global $environ_size       (export "environ_size:u32")          i32 (i32.const 16596)) ;; their bytes in all
(global $scratch            (export "scratch:u32")               i32 (i32.const 16600)) ;; where free room begins, above everything else
(global $rules              (export "rules:u8[64]")              i32 (i32.const 16604)) ;; by call number: 0, or the errno that refuses it

;; An output stream is four numbers: base, head, cap (each u32) and total (u64). Its first cap bytes land in
;; [base, base+cap) in order; of what follows, the part [head, cap) keeps the newest. So the beginning and the end of the
;; output are kept, and total tells how much there was.
(global $stdout             (export "stdout:stream")             i32 (i32.const 16672)) ;; the captured output
(global $stderr             (export "stderr:stream")             i32 (i32.const 16696)) ;; the same of stderr

;; -- layout of $state: what happened, as the host reads it ------------------------------------------------------------

(global $exited             (export "exited:u32")                i32 (i32.const 16720)) ;; 1: the guest called proc_exit
(global $exit_code          (export "exit_code:u32")             i32 (i32.const 16724)) ;; with this
(global $stop               (export "stop:u32")                  i32 (i32.const 16728)) ;; why the guard ended the run, see below
(global $violation_count    (export "violation_count:u32")       i32 (i32.const 16732)) ;; entries in $violations
(global $memory_used        (export "memory_used:u64")           i32 (i32.const 16736)) ;; bytes that memories and tables have: never shrinks; the host writes what they begin with
(global $table_used         (export "table_used:u64")            i32 (i32.const 16744)) ;; the same, elements of tables
(global $memory_refusals    (export "memory_refusals:u64")       i32 (i32.const 16752)) ;; growths refused by memory_limit
(global $memory_asked       (export "memory_asked:u64")          i32 (i32.const 16760)) ;; the most bytes asked for in vain
(global $table_refusals     (export "table_refusals:u64")        i32 (i32.const 16768)) ;; growths refused by table_limit
(global $table_asked        (export "table_asked:u64")           i32 (i32.const 16776)) ;; the most elements asked for in vain
(global $table_memory_refusals (export "table_memory_refusals:u64") i32 (i32.const 16784)) ;; growths of tables refused by memory_limit
(global $growth_refusals    (export "growth_refusals:u64")  i32 (i32.const 16792)) ;; growths of memories refused by growth_rate
(global $table_growth_refusals (export "table_growth_refusals:u64") i32 (i32.const 16800)) ;; growths of tables refused by growth_rate
(global $growth_asked       (export "growth_asked:u64")     i32 (i32.const 16808)) ;; the most bytes in a second asked for in vain
(global $idle               (export "idle:u64")                  i32 (i32.const 16816)) ;; nanoseconds spent waiting, in poll_oneoff or for stdin
(global $read               (export "read:u64")                  i32 (i32.const 16824)) ;; bytes read from files
(global $written            (export "written:u64")               i32 (i32.const 16832)) ;; bytes written to files
(global $random             (export "random:u64")                i32 (i32.const 16840)) ;; random bytes handed out
(global $opened             (export "opened:u64")                i32 (i32.const 16848)) ;; files and folders opened
(global $open_now           (export "open_now:u64")              i32 (i32.const 16856)) ;; of these, open now
(global $open_peak          (export "open_peak:u64")             i32 (i32.const 16864)) ;; and the most at any time
(global $created            (export "created:u64")               i32 (i32.const 16872)) ;; files, folders and links created
(global $deleted            (export "deleted:u64")               i32 (i32.const 16880)) ;; files and folders removed
(global $stdin_read         (export "stdin_read:u32")            i32 (i32.const 16888)) ;; bytes of stdin the guest has taken
(global $violations_dropped (export "violations_dropped:u64")    i32 (i32.const 16896)) ;; violations that found no entry
(global $event_count        (export "event_count:u64")           i32 (i32.const 16904)) ;; events written, overwritten ones included
(global $virtual_now        (export "virtual_now:u64")           i32 (i32.const 16912)) ;; nanoseconds on the virtual clock
(global $random_state       (export "random_state:u64")          i32 (i32.const 16920)) ;; of the seeded generator; the host writes the seed
(global $calls              (export "calls:u64[47]")             i32 (i32.const 16928)) ;; by call number: how often it was made
(global $denied             (export "denied:u64[47]")            i32 (i32.const 17304)) ;; and how often it was refused

;; -- layout of $state: the guard's own notes ---------------------------------------------------------------------------

(global $notes              (export "notes:u8")                  i32 (i32.const 17680)) ;; from here on nothing is read for reports
(global $host_now           (export "host_now:u64")              i32 (i32.const 17680)) ;; nanoseconds into the run, by the host, as of its last look
(global $resting            (export "resting:u32")               i32 (i32.const 17688)) ;; 1: the guest is halted for a wait of its own, which counts as idle
(global $credit             (export "credit:u64")                i32 (i32.const 17696)) ;; calls that may be made before limits are looked at again
(global $granted            (export "granted:u64")               i32 (i32.const 17704)) ;; what credit was when it was last set
(global $calls_made         (export "calls_made:u64")            i32 (i32.const 17712)) ;; calls made before that
(global $call_window        (export "call_window:u64")           i32 (i32.const 17720)) ;; when the present second of call_rate began
(global $read_window        (export "read_window:u64")           i32 (i32.const 17728)) ;; when counting for read_rate began; 0: not yet
(global $read_in_window     (export "read_in_window:u64")        i32 (i32.const 17736)) ;; bytes since then (stands right behind its window)
(global $write_window       (export "write_window:u64")          i32 (i32.const 17744)) ;; the same for write_rate
(global $write_in_window    (export "write_in_window:u64")       i32 (i32.const 17752)) ;; bytes since then
(global $growth_window      (export "growth_window:u64")    i32 (i32.const 17760)) ;; when the present second of growth_rate began; 0: not yet
(global $growth_in_window   (export "growth_in_window:u64") i32 (i32.const 17768)) ;; bytes since then
(global $tap_written        (export "tap_written:u64")           i32 (i32.const 17776)) ;; bytes put into it, frames and their heads
(global $tap_read           (export "tap_read:u64")              i32 (i32.const 17784)) ;; of these, taken out by the host
(global $tap                (export "tap:u32")                   i32 (i32.const 17792)) ;; where the ring of output for the host lies; 0: nobody listens
(global $tap_size           (export "tap_size:u32")              i32 (i32.const 17796)) ;; its bytes, a power of two
(global $stdin_wanted       (export "stdin_wanted:u32")          i32 (i32.const 17800)) ;; 1: the guest waits for the host to give more of stdin
(global $violation_kinds    (export "violation_kinds:u32")       i32 (i32.const 17804)) ;; a bit for each kind that has an entry
(global $borrowed                                                i32 (i32.const 17808)) ;; guest bytes whose place is used for a moment, see $now
(global $room               (export "room:u8")                   i32 (i32.const 17936)) ;; from here on the host places its data

;; What stands for all functions of the embedder where calls have numbers: one more than the last of WASI's.
(global $HOST               (export "HOST:const")                i32 (i32.const 46))

;; Reasons in $stop.
(global $STOP_MEMORY        (export "STOP_MEMORY:const")         i32 (i32.const 1)) ;; growth was refused, and the policy says stop
(global $STOP_HOST_MEMORY   (export "STOP_HOST_MEMORY:const")    i32 (i32.const 2)) ;; the host has no memory left for the guard
(global $STOP_DENIED        (export "STOP_DENIED:const")         i32 (i32.const 3)) ;; a violation, and the policy says stop
(global $STOP_IDLE          (export "STOP_IDLE:const")           i32 (i32.const 4)) ;; one wait was longer than idle_limit

;; What is done about a violation, in $on_violation and in its entry; and where a rate is exceeded, in $on_rate.
(global $DENY               (export "DENY:const")                i32 (i32.const 0))
(global $STOP               (export "STOP:const")                i32 (i32.const 1))
(global $NOTE               (export "NOTE:const")                i32 (i32.const 2))
(global $WAIT               (export "WAIT:const")                i32 (i32.const 0))
(global $REFUSE             (export "REFUSE:const")              i32 (i32.const 1))

(global $CLOCK_REAL         (export "CLOCK_REAL:const")          i32 (i32.const 0))
(global $CLOCK_COARSE       (export "CLOCK_COARSE:const")        i32 (i32.const 1))
(global $CLOCK_VIRTUAL      (export "CLOCK_VIRTUAL:const")       i32 (i32.const 2))
(global $STDIN_BYTES        (export "STDIN_BYTES:const")          i32 (i32.const 0))
(global $STDIN_ASKED        (export "STDIN_ASKED:const")          i32 (i32.const 1))
(global $CLOCK_NONE         (export "CLOCK_NONE:const")           i32 (i32.const 3))
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
(global $KIND_idle          (export "KIND_idle:const")           i32 (i32.const 15))

;; An entry of $violations: kind u32, call u32, count u64, limit u64, observed u64, at u64 (nanoseconds), length of the
;; subject u32, action u32, and the first bytes of the subject. The last entries are kept for kinds that have none yet,
;; so that a flood of one kind cannot push out the first of another.
(global $VIOLATION_SIZE     (export "VIOLATION_SIZE:const")      i32 (i32.const 128))
(global $VIOLATIONS_MAX     (export "VIOLATIONS_MAX:const")      i32 (i32.const 64))
;; An entry of $events, one for each time: kind u32, call u32, errno u32, action u32, limit u64, observed u64, at u64,
;; length of the subject u32, and at $SUBJECT its first bytes. The newest overwrites the oldest.
(global $EVENTS_MAX         (export "EVENTS_MAX:const")           i32 (i32.const 32))
(global $VIOLATIONS_COMMON                                       i32 (i32.const 48))
(global $SUBJECT            (export "SUBJECT:const")             i32 (i32.const 48)) ;; where the subject stands in an entry
(global $SUBJECT_MAX        (export "SUBJECT_MAX:const")         i32 (i32.const 80)) ;; how much of it is kept

;; Kinds of descriptors in $kinds. As it was born: 0, 1 and 2 are stdin, stdout and stderr, others are native WASI's.
(global $STDIN                                                   i32 (i32.const 1))
(global $STDOUT                                                  i32 (i32.const 2))
(global $STDERR                                                  i32 (i32.const 3))
(global $FILE                                                    i32 (i32.const 4)) ;; opened by the guest
(global $APPENDING                                               i32 (i32.const 5)) ;; the same, and every write goes to its end
(global $CLOSED                                                  i32 (i32.const 6))
(global $NATIVE                                                  i32 (i32.const 7)) ;; a mount that was given another number
(global $MAX_DESCRIPTORS    (export "MAX_DESCRIPTORS:const")     i32 (i32.const 4096))

;; Errno values of WASI.
(global $SUCCESS                                                 i32 (i32.const 0))
(global $EACCES                                                  i32 (i32.const 2))
(global $EAGAIN                                                  i32 (i32.const 6))
(global $EBADF                                                   i32 (i32.const 8))
(global $EDQUOT                                                  i32 (i32.const 19))
(global $EFBIG                                                   i32 (i32.const 22))
(global $EINVAL                                                  i32 (i32.const 28))
(global $EMFILE                                                  i32 (i32.const 33))
(global $ENOTSOCK                                                i32 (i32.const 57))
(global $EPERM                                                   i32 (i32.const 63))
(global $EROFS                                                   i32 (i32.const 69))
(global $ENOTCAPABLE                                             i32 (i32.const 76))

;; As POSIX: the most buffers that one read or write may name, and a bound like it for one poll.
(global $IOV_MAX            (export "IOV_MAX:const")             i32 (i32.const 1024))
(global $POLL_MAX           (export "POLL_MAX:const")            i32 (i32.const 1024))
(global $SUBSCRIPTION_SIZE                                       i32 (i32.const 48))
(global $EVENT_SIZE                                              i32 (i32.const 32))

;; -- helpers --------------------------------------------------------------------------------------------------------

;; Every call begins here. Counts it; returns 0, or the errno with which the policy refuses it. Limits on the number of
;; calls are looked at only when the credit is used up, so that no clock needs to be read for each call.
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

;; Looks at calls_limit and call_rate, and sets how many calls may be made until they are looked at again.
(func $renew_credit (param $number i32) (result i32)
  (local $limit i64) (local $made i64) (local $rate i64) (local $now i64) (local $end i64) (local $credit i64)
  (local $errno i32)
  (call $add (global.get $calls_made) (i64.load $state (global.get $granted)))
  (i64.store $state (global.get $granted) (i64.const 0))
  (local.set $limit (i64.load $state (global.get $calls_limit)))
  (local.set $made (i64.load $state (global.get $calls_made)))
  (local.set $credit (i64.sub (local.get $limit) (local.get $made)))
  (if (i64.ge_u (local.get $made) (local.get $limit))
    (then
      (if (local.tee $errno
            (call $refuse (global.get $KIND_calls) (local.get $number) (local.get $limit)
              (i64.add (local.get $made) (i64.const 1)) (global.get $EPERM)))
        (then (return (local.get $errno))))
      (local.set $credit (i64.const 1))))
  (local.set $rate (i64.load $state (global.get $call_rate)))
  (if (i64.ne (local.get $rate) (i64.const -1))
    (then
      (local.set $now (call $time))
      (local.set $end (i64.add (i64.load $state (global.get $call_window)) (i64.const 1000000000)))
      (if (i64.lt_u (local.get $now) (local.get $end))
        ;; The second's calls were made before the second was over.
        (then
          (if (local.tee $errno
                (call $exceed_rate (global.get $KIND_call_rate) (local.get $number) (local.get $rate)
                  (i64.sub (local.get $end) (local.get $now))))
            (then (return (local.get $errno))))
          (local.set $now (call $time))))
      (i64.store $state (global.get $call_window) (i64.or (local.get $now) (i64.const 1)))
      (if (i64.lt_u (local.get $rate) (local.get $credit)) (then (local.set $credit (local.get $rate))))))
  (i64.store $state (global.get $granted) (local.get $credit))
  (i64.store $state (global.get $credit) (local.get $credit))
  (global.get $SUCCESS))

;; A rate is exceeded: waits until it is not (noted once as a violation), or refuses, as the policy says.
(func $exceed_rate (param $kind i32) (param $number i32) (param $rate i64) (param $nanoseconds i64) (result i32)
  (if (i32.eq (i32.load $state (global.get $on_rate)) (global.get $REFUSE))
    (then
      (return
        (call $refuse (local.get $kind) (local.get $number) (local.get $rate)
          (i64.add (local.get $rate) (i64.const 1)) (global.get $EAGAIN)))))
  (call $record (local.get $kind) (local.get $number) (i32.const 0) (i32.const 0) (local.get $rate)
    (i64.add (local.get $rate) (i64.const 1)) (global.get $NOTE) (global.get $SUCCESS))
  (call $halt (local.get $nanoseconds))
  (global.get $SUCCESS))

;; -- violations -----------------------------------------------------------------------------------------------------

;; A violation without a path. Returns the errno with which the call fails, or 0 where the policy only takes note.
(func $refuse (param $kind i32) (param $number i32) (param $limit i64) (param $observed i64) (param $errno i32)
  (result i32)
  (call $refuse_path (local.get $kind) (local.get $number) (i32.const 0) (i32.const 0) (local.get $limit)
    (local.get $observed) (local.get $errno)))

;; A violation that is about a path in the guest's memory.
(func $refuse_path (param $kind i32) (param $number i32) (param $path i32) (param $size i32) (param $limit i64)
  (param $observed i64) (param $errno i32) (result i32)
  (local $action i32)
  (local.set $action (i32.load $state (global.get $on_violation)))
  (call $record (local.get $kind) (local.get $number) (local.get $path) (local.get $size) (local.get $limit)
    (local.get $observed) (local.get $action)
    (select (global.get $SUCCESS) (local.get $errno) (i32.eq (local.get $action) (global.get $NOTE))))
  (if (i32.eq (local.get $action) (global.get $NOTE)) (then (return (global.get $SUCCESS))))
  (call $refused (local.get $number) (local.get $action))
  (local.get $errno))

;; A call is refused: counts that, and ends the run where the policy says so.
(func $refused (param $number i32) (param $action i32)
  (call $add (i32.add (global.get $denied) (i32.shl (local.get $number) (i32.const 3))) (i64.const 1))
  (if (i32.eq (local.get $action) (global.get $STOP)) (then (call $end_run (global.get $STOP_DENIED)))))

;; Native WASI's answer to a call on a path. Where it refused for want of rights, that is a violation: a folder that is
;; read-only, a way out of a mount. It is refused whatever the policy says about violations.
(func $judge (param $number i32) (param $errno i32) (param $path i32) (param $size i32) (result i32)
  (local $action i32)
  (if (i32.eqz (local.get $errno)) (then (return (global.get $SUCCESS))))
  (if (i32.or
        (i32.or (i32.eq (local.get $errno) (global.get $EPERM)) (i32.eq (local.get $errno) (global.get $ENOTCAPABLE)))
        (i32.or (i32.eq (local.get $errno) (global.get $EROFS)) (i32.eq (local.get $errno) (global.get $EACCES))))
    (then
      (local.set $action
        (select (global.get $STOP) (global.get $DENY)
          (i32.eq (i32.load $state (global.get $on_violation)) (global.get $STOP))))
      (call $record (global.get $KIND_path) (local.get $number) (local.get $path) (local.get $size) (i64.const 0)
        (i64.const 0) (local.get $action) (local.get $errno))
      (call $refused (local.get $number) (local.get $action))))
  (local.get $errno))

;; Writes a violation down: once for each kind, call and subject, with a count.
(func $record (param $kind i32) (param $number i32) (param $path i32) (param $size i32) (param $limit i64)
  (param $observed i64) (param $action i32) (param $errno i32)
  (local $entry i32) (local $left i32) (local $bit i32) (local $count i32) (local $kept i32) (local $now i64)
  (local.set $kept (local.get $size))
  (if (i32.gt_u (local.get $kept) (global.get $SUBJECT_MAX)) (then (local.set $kept (global.get $SUBJECT_MAX))))
  (call $check (local.get $path) (i64.extend_i32_u (local.get $kept)))
  (local.set $now (call $time))
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
  (i32.store $state (global.get $violation_count) (i32.add (local.get $count) (i32.const 1)))
  (i32.store $state (local.get $entry) (local.get $kind))
  (i32.store $state offset=4 (local.get $entry) (local.get $number))
  (i64.store $state offset=8 (local.get $entry) (i64.const 1))
  (i64.store $state offset=16 (local.get $entry) (local.get $limit))
  (i64.store $state offset=24 (local.get $entry) (local.get $observed))
  (i32.store $state offset=40 (local.get $entry) (local.get $size))
  (i32.store $state offset=44 (local.get $entry) (local.get $action))
  (memory.copy $state $guest (i32.add (local.get $entry) (global.get $SUBJECT)) (local.get $path) (local.get $kept))
  (i64.store $state offset=32 (local.get $entry) (local.get $now)))

;; Writes an event into the ring.
(func $note_event (param $kind i32) (param $number i32) (param $path i32) (param $size i32) (param $kept i32)
  (param $limit i64) (param $observed i64) (param $action i32) (param $errno i32) (param $now i64)
  (local $entry i32)
  (local.set $entry
    (i32.add (global.get $events)
      (i32.mul (global.get $VIOLATION_SIZE)
        (i32.rem_u (i32.wrap_i64 (i64.load $state (global.get $event_count))) (global.get $EVENTS_MAX)))))
  (call $add (global.get $event_count) (i64.const 1))
  (i32.store $state (local.get $entry) (local.get $kind))
  (i32.store $state offset=4 (local.get $entry) (local.get $number))
  (i32.store $state offset=8 (local.get $entry) (local.get $errno))
  (i32.store $state offset=12 (local.get $entry) (local.get $action))
  (i64.store $state offset=16 (local.get $entry) (local.get $limit))
  (i64.store $state offset=24 (local.get $entry) (local.get $observed))
  (i64.store $state offset=32 (local.get $entry) (local.get $now))
  (i32.store $state offset=40 (local.get $entry) (local.get $size))
  (memory.copy $state $guest (i32.add (local.get $entry) (global.get $SUBJECT)) (local.get $path) (local.get $kept)))

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
      (if (i32.ne (i32.load8_u $state (local.get $subject)) (i32.load8_u $guest (local.get $path)))
        (then (return (i32.const 0))))
      (local.set $subject (i32.add (local.get $subject) (i32.const 1)))
      (local.set $path (i32.add (local.get $path) (i32.const 1)))
      (local.set $kept (i32.sub (local.get $kept) (i32.const 1)))
      (br $next)))
  (i32.const 1))

;; -- asking native WASI for oneself -----------------------------------------------------------------------------------

;; Native WASI writes its answers into the guest's memory only. So the guard uses the lowest bytes of it for a moment and
;; puts back what stood there: nothing of the guest runs in between.

;; The time of a clock.
(func $now (param $clock i32) (result i64)
  (local $saved i64) (local $now i64)
  (local.set $saved (i64.load $guest (i32.const 0)))
  (drop (call $native.clock_time_get (local.get $clock) (i64.const 0) (i32.const 0)))
  (local.set $now (i64.load $guest (i32.const 0)))
  (i64.store $guest (i32.const 0) (local.get $saved))
  (local.get $now))

;; Where a file is read and written next; -1 where it has no such place.
(func $position (param $fd i32) (result i64)
  (local $saved i64) (local $position i64)
  (local.set $saved (i64.load $guest (i32.const 0)))
  (local.set $position (i64.const -1))
  (if (i32.eqz (call $native.fd_tell (local.get $fd) (i32.const 0)))
    (then (local.set $position (i64.load $guest (i32.const 0)))))
  (i64.store $guest (i32.const 0) (local.get $saved))
  (local.get $position))

;; The size of an open file; -1 where it has none.
(func $file_size (param $fd i32) (result i64)
  (local $size i64)
  (memory.copy $state $guest (global.get $borrowed) (i32.const 0) (i32.const 64))
  (local.set $size (i64.const -1))
  (if (i32.eqz (call $native.fd_filestat_get (local.get $fd) (i32.const 0)))
    (then (local.set $size (i64.load $guest (i32.const 32)))))
  (memory.copy $guest $state (i32.const 0) (global.get $borrowed) (i32.const 64))
  (local.get $size))

;; Whether something stands at a path. Looked at without following (lookup flags 0), a link is something, whatever it
;; points to; with 1, it is what it points to.
(func $exists (param $fd i32) (param $lookup i32) (param $path i32) (param $size i32) (result i32)
  (local $found i32)
  (memory.copy $state $guest (global.get $borrowed) (i32.const 0) (i32.const 64))
  (local.set $found
    (i32.eqz
      (call $native.path_filestat_get (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size)
        (i32.const 0))))
  (memory.copy $guest $state (i32.const 0) (global.get $borrowed) (i32.const 64))
  (local.get $found))

;; The time for limits: nanoseconds into the run. Where the guest lacks native clocks, the host notes the time whenever
;; it looks up, which is exact enough for rates.
(func $time (result i64)
  (if (result i64) (call $has_time)
    (then (call $now (i32.const 1)))
    (else (i64.load $state (global.get $host_now)))))

;; Whether native WASI can tell the time and wait: it must be in reach, and needs memory of the guest to write to.
(func $has_time (result i32)
  (i32.and (i32.load $state (global.get $has_clock)) (i32.ne (memory.size $guest) (i32.const 0))))

;; Halts the guest: its stack is left as it is, and no thread is held, until the host wakes it. The host does so when the
;; time is over, or before, when what the guest waits for is there: more of stdin, where that is wanted.
(func $halt (param $nanoseconds i64)
  (i64.store $state (global.get $halt_for) (local.get $nanoseconds))
  (drop (call $native.poll_oneoff (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))))

;; Halts the guest, which waits since $began for something that comes in so many nanoseconds or by the host, and counts
;; the time as idle. A wait beyond idle_limit ends the run.
(func $rest (param $number i32) (param $began i64) (param $nanoseconds i64)
  (local $before i64) (local $now i64) (local $most i64)
  (local.set $before (call $time))
  (local.set $most
    (i64.sub (i64.load $state (global.get $idle_limit)) (i64.sub (local.get $before) (local.get $began))))
  (i32.store $state (global.get $resting) (i32.const 1))
  (call $halt
    (select (local.get $nanoseconds) (local.get $most) (i64.le_u (local.get $nanoseconds) (local.get $most))))
  (i32.store $state (global.get $resting) (i32.const 0))
  (local.set $now (call $time))
  (call $add (global.get $idle) (i64.sub (local.get $now) (local.get $before)))
  (if (i32.and
        (i64.gt_u (local.get $nanoseconds) (local.get $most))
        (i64.ge_u (i64.sub (local.get $now) (local.get $began)) (i64.load $state (global.get $idle_limit))))
    (then
      (call $record (global.get $KIND_idle) (local.get $number) (i32.const 0) (i32.const 0)
        (i64.load $state (global.get $idle_limit)) (i64.sub (local.get $now) (local.get $began))
        (global.get $STOP) (global.get $SUCCESS))
      (call $end_run (global.get $STOP_IDLE)))))

;; -- small helpers ----------------------------------------------------------------------------------------------------

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

;; Whether the guest opened it.
(func $is_file (param $fd i32) (result i32)
  (local $kind i32)
  (local.set $kind (call $kind (local.get $fd)))
  (i32.or (i32.eq (local.get $kind) (global.get $FILE)) (i32.eq (local.get $kind) (global.get $APPENDING))))

;; A descriptor is free again.
(func $forget (param $fd i32)
  (if (call $is_file (local.get $fd)) (then (call $add (global.get $open_now) (i64.const -1))))
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
          (call $halt (i64.const 0))
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
  (memory.copy $state $guest (local.get $place) (local.get $source) (local.get $first))
  (memory.copy $state $guest (i32.load $state (global.get $tap)) (i32.add (local.get $source) (local.get $first))
    (i32.sub (local.get $size) (local.get $first))))

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
      (if (i32.load $state (global.get $tap))
        (then (call $tell (local.get $stream) (i32.load $guest (local.get $iovs)) (local.get $size))))
      (local.set $sum (i32.add (local.get $sum) (local.get $size)))
      (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
  (i32.store $guest (local.get $written) (local.get $sum))
  (global.get $SUCCESS))

;; Whether there are bytes of stdin to read, or its end. If not, the host is asked for more; it puts them in place, and at
;; the end of stdin changes the mode.
(func $has_stdin (result i32)
  (if (i32.or
        (i32.lt_u (i32.load $state (global.get $stdin_read)) (i32.load $state (global.get $stdin_size)))
        (i32.ne (i32.load $state (global.get $stdin_mode)) (global.get $STDIN_ASKED)))
    (then (return (i32.const 1))))
  (i32.store $state (global.get $stdin_wanted) (i32.const 1))
  (i32.const 0))

(func $await_stdin
  (local $began i64)
  (if (call $has_stdin) (then (return)))
  (local.set $began (call $time))
  (loop $wait
    (call $rest (i32.const 20) (local.get $began) (i64.const -1))
    (br_if $wait (i32.eqz (call $has_stdin)))))

;; fd_read from stdin.
(func $take_stdin (param $iovs i32) (param $count i32) (param $taken i32) (result i32)
  (local $left i32) (local $size i32) (local $sum i32) (local $source i32)
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (call $check (local.get $iovs) (i64.extend_i32_u (i32.shl (local.get $count) (i32.const 3))))
  (call $check (local.get $taken) (i64.const 4))
  (call $await_stdin)
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
  (if (local.tee $errno (call $native.clock_res_get (local.get $clock) (local.get $result)))
    (then (return (local.get $errno))))
  (if (i32.load $state (global.get $clock_mode))
    (then (i64.store $guest (local.get $result) (i64.load $state (global.get $clock_resolution)))))
  (global.get $SUCCESS))

(func (export "clock_time_get") (param $clock i32) (param $precision i64) (param $result i32) (result i32)
  (local $errno i32) (local $mode i32) (local $resolution i64)
  (if (local.tee $errno (call $enter (i32.const 5))) (then (return (local.get $errno))))
  (local.set $mode (i32.load $state (global.get $clock_mode)))
  (if (i32.and (i32.eq (local.get $mode) (global.get $CLOCK_VIRTUAL)) (i32.le_u (local.get $clock) (i32.const 1)))
    (then
      (i64.store $guest (local.get $result) (call $virtual (local.get $clock)))
      (call $add (global.get $virtual_now) (i64.load $state (global.get $clock_step)))
      (return (global.get $SUCCESS))))
  (local.set $errno (call $native.clock_time_get (local.get $clock) (local.get $precision) (local.get $result)))
  (if (i32.and (i32.eq (local.get $mode) (global.get $CLOCK_COARSE)) (i32.eqz (local.get $errno)))
    (then
      (local.set $resolution (i64.load $state (global.get $clock_resolution)))
      (i64.store $guest (local.get $result)
        (i64.sub (i64.load $guest (local.get $result))
                 (i64.rem_u (i64.load $guest (local.get $result)) (local.get $resolution))))))
  (local.get $errno))

;; The time on the virtual clock: of day (0), or since the beginning of the run (1).
(func $virtual (param $clock i32) (result i64)
  (i64.add (i64.load $state (global.get $virtual_now))
    (select (i64.const 0) (i64.load $state (global.get $clock_start)) (local.get $clock))))

;; -- limits on files --------------------------------------------------------------------------------------------------

;; The first buffer that is not empty, which is the one that native WASI reads into or writes from; 0 if there is none.
(func $first_buffer (param $iovs i32) (param $count i32) (result i32)
  (call $check (local.get $iovs) (i64.shl (i64.extend_i32_u (local.get $count)) (i64.const 3)))
  (block $none
    (loop $next
      (br_if $none (i32.eqz (local.get $count)))
      (if (i32.load $guest offset=4 (local.get $iovs)) (then (return (local.get $iovs))))
      (local.set $iovs (i32.add (local.get $iovs) (i32.const 8)))
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (br $next)))
  (i32.const 0))

;; Whether a file may come to end here; if not, EFBIG, or 0 where the policy only takes note.
(func $may_reach (param $number i32) (param $from i64) (param $size i64) (result i32)
  (local $end i64) (local $limit i64)
  (local.set $limit (i64.load $state (global.get $file_size_limit)))
  (local.set $end (i64.add (local.get $from) (local.get $size)))
  (if (i64.lt_u (local.get $end) (local.get $from)) (then (local.set $end (i64.const -1))))
  (if (i64.le_u (local.get $end) (local.get $limit)) (then (return (global.get $SUCCESS))))
  (call $refuse (global.get $KIND_file_size) (local.get $number) (local.get $limit) (local.get $end)
    (global.get $EFBIG)))

;; What stands before every write to a file: all of its first buffer must fit the limits. $from is where it would begin,
;; or -1 for the file's own position.
(func $may_write (param $number i32) (param $fd i32) (param $iovs i32) (param $count i32) (param $from i64) (result i32)
  (local $buffer i32) (local $size i64) (local $errno i32) (local $total i64)
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (if (i32.eqz (local.tee $buffer (call $first_buffer (local.get $iovs) (local.get $count))))
    (then (return (global.get $SUCCESS))))
  (local.set $size (i64.load32_u $guest offset=4 (local.get $buffer)))
  (local.set $total (i64.add (i64.load $state (global.get $written)) (local.get $size)))
  (if (i64.gt_u (local.get $total) (i64.load $state (global.get $write_limit)))
    (then
      (if (local.tee $errno
            (call $refuse (global.get $KIND_write_bytes) (local.get $number)
              (i64.load $state (global.get $write_limit)) (local.get $total) (global.get $EDQUOT)))
        (then (return (local.get $errno))))))
  (if (i32.and (call $is_file (local.get $fd)) (i64.ne (i64.load $state (global.get $file_size_limit)) (i64.const -1)))
    (then
      (if (i32.eq (call $kind (local.get $fd)) (global.get $APPENDING))
        (then (local.set $from (call $file_size (local.get $fd))))
        (else
          (if (i64.eq (local.get $from) (i64.const -1))
            (then (local.set $from (call $position (local.get $fd)))))))
      ;; What has no position is no file: native WASI will say so.
      (if (i64.ne (local.get $from) (i64.const -1))
        (then
          (if (local.tee $errno (call $may_reach (local.get $number) (local.get $from) (local.get $size)))
            (then (return (local.get $errno))))))))
  (call $pace (global.get $write_window) (i64.load $state (global.get $write_rate)) (global.get $KIND_write_rate)
    (local.get $number)))

(func $has_written (param $bytes i64)
  (call $add (global.get $written) (local.get $bytes))
  (call $passed (global.get $write_window) (local.get $bytes)))

;; What stands before every read from a file. Returns an errno, or 0; then $shorten says how long the first buffer may
;; be. $from is where the read would begin, or -1 for the file's own position.
(func $may_read (param $number i32) (param $fd i32) (param $iovs i32) (param $count i32) (param $from i64) (result i32)
  (local $buffer i32) (local $left i64) (local $errno i32)
  (if (i32.gt_u (local.get $count) (global.get $IOV_MAX)) (then (return (global.get $EINVAL))))
  (local.set $buffer (call $first_buffer (local.get $iovs) (local.get $count)))
  ;; Where the policy only takes note, that is done after the read.
  (if (i32.and
        (i32.and (i32.ne (local.get $buffer) (i32.const 0)) (call $is_file (local.get $fd)))
        (i32.and (i64.eqz (call $read_left))
                 (i32.ne (i32.load $state (global.get $on_violation)) (global.get $NOTE))))
    (then
      ;; Nothing is left. To be told that the file is at its end is still allowed.
      (if (i64.eq (local.get $from) (i64.const -1)) (then (local.set $from (call $position (local.get $fd)))))
      (if (i64.lt_u (local.get $from) (call $file_size (local.get $fd)))
        (then
          (if (local.tee $errno
                (call $refuse (global.get $KIND_read_bytes) (local.get $number)
                  (i64.load $state (global.get $read_limit))
                  (i64.add (i64.load $state (global.get $read)) (i64.const 1)) (global.get $EDQUOT)))
            (then (return (local.get $errno))))))))
  (call $pace (global.get $read_window) (i64.load $state (global.get $read_rate)) (global.get $KIND_read_rate)
    (local.get $number)))

;; How many bytes may still be read.
(func $read_left (result i64)
  (local $limit i64) (local $read i64)
  (local.set $limit (i64.load $state (global.get $read_limit)))
  (local.set $read (i64.load $state (global.get $read)))
  (if (result i64) (i64.lt_u (local.get $read) (local.get $limit))
    (then (i64.sub (local.get $limit) (local.get $read)))
    (else (i64.const 0))))

;; Shortens the first buffer to what may still be read. Returns its true length, for $has_read; 0: nothing was changed.
(func $shorten (param $buffer i32) (result i32)
  (local $size i32) (local $left i64)
  (if (i32.eqz (local.get $buffer)) (then (return (i32.const 0))))
  (local.set $size (i32.load $guest offset=4 (local.get $buffer)))
  (local.set $left (call $read_left))
  ;; With nothing left, the file is at its end.
  (if (i32.or (i64.eqz (local.get $left)) (i64.le_u (i64.extend_i32_u (local.get $size)) (local.get $left)))
    (then (return (i32.const 0))))
  (if (i32.eq (i32.load $state (global.get $on_violation)) (global.get $NOTE)) (then (return (i32.const 0))))
  (i32.store $guest offset=4 (local.get $buffer) (i32.wrap_i64 (local.get $left)))
  (local.get $size))

;; After a read: counts it, and puts the length of a shortened buffer back, unless what was read stands there now. The
;; count may be wanted in that very place, so it is written once more.
(func $has_read (param $number i32) (param $errno i32) (param $taken i32) (param $buffer i32) (param $size i32)
  (param $left i64) (result i32)
  (local $bytes i32)
  (if (i32.eqz (local.get $errno)) (then (local.set $bytes (i32.load $guest (local.get $taken)))))
  (if (local.get $size)
    (then
      (if (i32.or
            (i32.eq (i32.load $guest offset=4 (local.get $buffer)) (i32.wrap_i64 (local.get $left)))
            (i32.and (i32.eqz (local.get $errno))
                     (i32.eq (local.get $taken) (i32.add (local.get $buffer) (i32.const 4)))))
        (then (i32.store $guest offset=4 (local.get $buffer) (local.get $size))))))
  (if (local.get $errno) (then (return (local.get $errno))))
  (i32.store $guest (local.get $taken) (local.get $bytes))
  (call $add (global.get $read) (i64.extend_i32_u (local.get $bytes)))
  (call $passed (global.get $read_window) (i64.extend_i32_u (local.get $bytes)))
  (if (i64.gt_u (i64.load $state (global.get $read)) (i64.load $state (global.get $read_limit)))
    (then
      (call $record (global.get $KIND_read_bytes) (local.get $number) (i32.const 0) (i32.const 0)
        (i64.load $state (global.get $read_limit)) (i64.load $state (global.get $read)) (global.get $NOTE)
        (global.get $SUCCESS))))
  (global.get $SUCCESS))

;; Bytes went through: counts them for the rate, from the first one on.
(func $passed (param $window i32) (param $bytes i64)
  (if (i64.eqz (i64.load $state (local.get $window)))
    (then (i64.store $state (local.get $window) (i64.or (call $time) (i64.const 1)))))
  (call $add (i32.add (local.get $window) (i32.const 8)) (local.get $bytes)))

;; Holds a rate: a second's worth may go at once; what is more has to wait until its time, or is refused.
(func $pace (param $window i32) (param $rate i64) (param $kind i32) (param $number i32) (result i32)
  (local $bytes i64) (local $due i64) (local $now i64) (local $errno i32)
  (local.set $bytes (i64.load $state offset=8 (local.get $window)))
  (if (i64.lt_u (local.get $bytes) (local.get $rate)) (then (return (global.get $SUCCESS))))
  (local.set $now (call $time))
  (local.set $due
    (i64.add (i64.load $state (local.get $window))
      (i64.add (i64.mul (i64.div_u (local.get $bytes) (local.get $rate)) (i64.const 1000000000))
               (i64.div_u (i64.mul (i64.rem_u (local.get $bytes) (local.get $rate)) (i64.const 1000000000))
                          (local.get $rate)))))
  (if (i64.lt_u (local.get $now) (local.get $due))
    (then
      (if (local.tee $errno
            (call $exceed_rate (local.get $kind) (local.get $number) (local.get $rate)
              (i64.sub (local.get $due) (local.get $now))))
        (then (return (local.get $errno))))
      (local.set $now (call $time))))
  (i64.store $state (local.get $window) (i64.or (local.get $now) (i64.const 1)))
  (i64.store $state offset=8 (local.get $window) (i64.const 0))
  (global.get $SUCCESS))

;; Whether one more file, folder or link may be created at a path.
(func $may_create_one (param $number i32) (param $path i32) (param $size i32) (result i32)
  (local $created i64)
  (if (i32.eqz (i32.load $state (global.get $may_create)))
    (then
      (return
        (call $refuse_path (global.get $KIND_create) (local.get $number) (local.get $path) (local.get $size)
          (i64.const 0) (i64.const 0) (global.get $EPERM)))))
  (local.set $created (i64.load $state (global.get $created)))
  (if (i64.lt_u (local.get $created) (i64.load $state (global.get $created_limit)))
    (then (return (global.get $SUCCESS))))
  (call $refuse_path (global.get $KIND_files_created) (local.get $number) (local.get $path) (local.get $size)
    (i64.load $state (global.get $created_limit)) (i64.add (local.get $created) (i64.const 1)) (global.get $EDQUOT)))

(func $may_link_one (param $number i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (i32.eqz (i32.load $state (global.get $may_link)))
    (then
      (if (local.tee $errno
            (call $refuse_path (global.get $KIND_symlinks) (local.get $number) (local.get $path) (local.get $size)
              (i64.const 0) (i64.const 0) (global.get $EPERM)))
        (then (return (local.get $errno))))))
  (call $may_create_one (local.get $number) (local.get $path) (local.get $size)))

(func $may_delete_one (param $number i32) (param $path i32) (param $size i32) (result i32)
  (if (i32.load $state (global.get $may_delete)) (then (return (global.get $SUCCESS))))
  (call $refuse_path (global.get $KIND_delete) (local.get $number) (local.get $path) (local.get $size) (i64.const 0)
    (i64.const 0) (global.get $EPERM)))

;; -- descriptors ----------------------------------------------------------------------------------------------------

(func (export "fd_advise") (param $fd i32) (param $offset i64) (param $length i64) (param $advice i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 6))) (then (return (local.get $errno))))
  (call $native.fd_advise (local.get $fd) (local.get $offset) (local.get $length) (local.get $advice)))

(func (export "fd_allocate") (param $fd i32) (param $offset i64) (param $length i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 7))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $may_reach (i32.const 7) (local.get $offset) (local.get $length)))
    (then (return (local.get $errno))))
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
  (if (local.tee $errno (call $native.fd_fdstat_set_flags (local.get $fd) (local.get $flags)))
    (then (return (local.get $errno))))
  (if (call $is_file (local.get $fd)) (then (call $set_kind (local.get $fd) (call $file_kind (local.get $flags)))))
  (global.get $SUCCESS))

;; What a file is, by its flags: bit 0 is APPEND.
(func $file_kind (param $flags i32) (result i32)
  (select (global.get $APPENDING) (global.get $FILE) (i32.and (local.get $flags) (i32.const 1))))

(func (export "fd_fdstat_set_rights") (param $fd i32) (param $base i64) (param $inheriting i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 12))) (then (return (local.get $errno))))
  (call $native.fd_fdstat_set_rights (local.get $fd) (local.get $base) (local.get $inheriting)))

(func (export "fd_filestat_get") (param $fd i32) (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 13))) (then (return (local.get $errno))))
  (if (i32.eqz (local.tee $errno (call $native.fd_filestat_get (local.get $fd) (local.get $result))))
    (then (call $cut_times (local.get $result))))
  (local.get $errno))

;; The times of a file tell no more than the clock does: cut like a coarse clock's, or all the same.
(func $cut_times (param $filestat i32)
  (local $mode i32) (local $end i32) (local $resolution i64)
  (if (i32.eqz (local.tee $mode (i32.load $state (global.get $clock_mode)))) (then (return)))
  (local.set $resolution (i64.load $state (global.get $clock_resolution)))
  (local.set $end (i32.add (local.get $filestat) (i32.const 64)))
  (local.set $filestat (i32.add (local.get $filestat) (i32.const 40)))
  (loop $next
    (i64.store $guest (local.get $filestat)
      (if (result i64) (i32.eq (local.get $mode) (global.get $CLOCK_COARSE))
        (then (i64.sub (i64.load $guest (local.get $filestat))
                       (i64.rem_u (i64.load $guest (local.get $filestat)) (local.get $resolution))))
        (else (i64.load $state (global.get $clock_start)))))
    (br_if $next
      (i32.lt_u (local.tee $filestat (i32.add (local.get $filestat) (i32.const 8))) (local.get $end)))))

(func (export "fd_filestat_set_size") (param $fd i32) (param $size i64) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 14))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $may_reach (i32.const 14) (i64.const 0) (local.get $size)))
    (then (return (local.get $errno))))
  (call $native.fd_filestat_set_size (local.get $fd) (local.get $size)))

(func (export "fd_filestat_set_times") (param $fd i32) (param $accessed i64) (param $modified i64) (param $flags i32)
  (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 15))) (then (return (local.get $errno))))
  (call $native.fd_filestat_set_times (local.get $fd) (local.get $accessed) (local.get $modified) (local.get $flags)))

(func (export "fd_pread") (param $fd i32) (param $iovs i32) (param $count i32) (param $offset i64) (param $taken i32)
  (result i32)
  (local $errno i32) (local $buffer i32) (local $size i32) (local $left i64)
  (if (local.tee $errno (call $enter (i32.const 16))) (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $may_read (i32.const 16) (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset)))
    (then (return (local.get $errno))))
  (local.set $buffer (call $first_buffer (local.get $iovs) (local.get $count)))
  (local.set $left (call $read_left))
  (local.set $size (call $shorten (local.get $buffer)))
  (call $has_read (i32.const 16)
    (call $native.fd_pread (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset) (local.get $taken))
    (local.get $taken) (local.get $buffer) (local.get $size) (local.get $left)))

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
        (call $may_write (i32.const 19) (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $native.fd_pwrite (local.get $fd) (local.get $iovs) (local.get $count) (local.get $offset)
          (local.get $written)))
    (then (return (local.get $errno))))
  (call $has_written (i64.load32_u $guest (local.get $written)))
  (global.get $SUCCESS))

(func (export "fd_read") (param $fd i32) (param $iovs i32) (param $count i32) (param $taken i32) (result i32)
  (local $errno i32) (local $buffer i32) (local $size i32) (local $left i64)
  (if (local.tee $errno (call $enter (i32.const 20))) (then (return (local.get $errno))))
  (if (i32.eq (call $kind (local.get $fd)) (global.get $STDIN))
    (then (return (call $take_stdin (local.get $iovs) (local.get $count) (local.get $taken)))))
  (if (local.tee $errno
        (call $may_read (i32.const 20) (local.get $fd) (local.get $iovs) (local.get $count) (i64.const -1)))
    (then (return (local.get $errno))))
  (local.set $buffer (call $first_buffer (local.get $iovs) (local.get $count)))
  (local.set $left (call $read_left))
  (local.set $size (call $shorten (local.get $buffer)))
  (call $has_read (i32.const 20)
    (call $native.fd_read (local.get $fd) (local.get $iovs) (local.get $count) (local.get $taken))
    (local.get $taken) (local.get $buffer) (local.get $size) (local.get $left)))

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
      ;; What native WASI gave at birth is told by its number alone, which it has no longer.
      (local.set $errno (call $kind (local.get $from)))
      (call $set_kind (local.get $to) (select (local.get $errno) (global.get $NATIVE) (local.get $errno)))
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
        (call $may_write (i32.const 26) (local.get $fd) (local.get $iovs) (local.get $count) (i64.const -1)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $native.fd_write (local.get $fd) (local.get $iovs) (local.get $count) (local.get $written)))
    (then (return (local.get $errno))))
  (call $has_written (i64.load32_u $guest (local.get $written)))
  (global.get $SUCCESS))

;; -- paths ----------------------------------------------------------------------------------------------------------

(func (export "path_create_directory") (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 27))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $may_create_one (i32.const 27) (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $judge (i32.const 27)
          (call $native.path_create_directory (local.get $fd) (local.get $path) (local.get $size))
          (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $add (global.get $created) (i64.const 1))
  (global.get $SUCCESS))

(func (export "path_filestat_get") (param $fd i32) (param $flags i32) (param $path i32) (param $size i32)
  (param $result i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 28))) (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $judge (i32.const 28)
          (call $native.path_filestat_get (local.get $fd) (local.get $flags) (local.get $path) (local.get $size)
            (local.get $result))
          (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $cut_times (local.get $result))
  (global.get $SUCCESS))

(func (export "path_filestat_set_times") (param $fd i32) (param $flags i32) (param $path i32) (param $size i32)
  (param $accessed i64) (param $modified i64) (param $what i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 29))) (then (return (local.get $errno))))
  (call $judge (i32.const 29)
    (call $native.path_filestat_set_times (local.get $fd) (local.get $flags) (local.get $path) (local.get $size)
      (local.get $accessed) (local.get $modified) (local.get $what))
    (local.get $path) (local.get $size)))

(func (export "path_link") (param $old_fd i32) (param $flags i32) (param $old i32) (param $old_size i32)
  (param $new_fd i32) (param $new i32) (param $new_size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 30))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $may_link_one (i32.const 30) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $judge (i32.const 30)
          (call $native.path_link (local.get $old_fd) (local.get $flags) (local.get $old) (local.get $old_size)
            (local.get $new_fd) (local.get $new) (local.get $new_size))
          (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (call $add (global.get $created) (i64.const 1))
  (global.get $SUCCESS))

;; Opens a file that the guest would have created if it were missing (O_CREAT, bit 0 of the flags; O_EXCL is bit 2). A
;; file is created where nothing stands at the path, or where a link there points to nothing. Where creating is not
;; allowed, the file must exist. Flags are passed on as they came, for O_CREAT means more to native WASI than creating.
(func $open_or_create (param $fd i32) (param $lookup i32) (param $path i32) (param $size i32) (param $flags i32)
  (param $rights i64) (param $inheriting i64) (param $fdflags i32) (param $result i32) (result i32)
  (local $errno i32) (local $creates i32)
  (local.set $creates
    (i32.eqz
      (call $exists (local.get $fd)
        (select (i32.const 0) (local.get $lookup) (i32.and (local.get $flags) (i32.const 4)))
        (local.get $path) (local.get $size))))
  (if (local.get $creates)
    (then
      (if (local.tee $errno (call $may_create_one (i32.const 31) (local.get $path) (local.get $size)))
        (then (return (local.get $errno))))))
  (local.set $errno
    (call $judge (i32.const 31)
      (call $native.path_open (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size) (local.get $flags)
        (local.get $rights) (local.get $inheriting) (local.get $fdflags) (local.get $result))
      (local.get $path) (local.get $size)))
  (if (i32.and (local.get $creates) (i32.eqz (local.get $errno)))
    (then (call $add (global.get $created) (i64.const 1))))
  (local.get $errno))

(func (export "path_open") (param $fd i32) (param $lookup i32) (param $path i32) (param $size i32) (param $flags i32)
  (param $rights i64) (param $inheriting i64) (param $fdflags i32) (param $result i32) (result i32)
  (local $errno i32) (local $new i32) (local $open i64)
  (if (local.tee $errno (call $enter (i32.const 31))) (then (return (local.get $errno))))
  (local.set $open (i64.add (i64.load $state (global.get $open_now)) (i64.const 1)))
  (if (i64.gt_u (local.get $open) (i64.load $state (global.get $open_limit)))
    (then
      (if (local.tee $errno
            (call $refuse_path (global.get $KIND_open_files) (i32.const 31) (local.get $path) (local.get $size)
              (i64.load $state (global.get $open_limit)) (local.get $open) (global.get $EMFILE)))
        (then (return (local.get $errno))))))
  (if (local.tee $errno
        (if (result i32) (i32.and (local.get $flags) (i32.const 1))
          (then
            (call $open_or_create (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size)
              (local.get $flags) (local.get $rights) (local.get $inheriting) (local.get $fdflags)
              (local.get $result)))
          (else
            (call $judge (i32.const 31)
              (call $native.path_open (local.get $fd) (local.get $lookup) (local.get $path) (local.get $size)
                (local.get $flags) (local.get $rights) (local.get $inheriting) (local.get $fdflags)
                (local.get $result))
              (local.get $path) (local.get $size)))))
    (then (return (local.get $errno))))
  (local.set $new (i32.load $guest (local.get $result)))
  ;; No descriptor is ever out of the table's reach.
  (if (i32.ge_u (local.get $new) (global.get $MAX_DESCRIPTORS))
    (then
      (drop (call $native.fd_close (local.get $new)))
      (return (global.get $EMFILE))))
  (call $set_kind (local.get $new) (call $file_kind (local.get $fdflags)))
  (call $add (global.get $opened) (i64.const 1))
  (i64.store $state (global.get $open_now) (local.get $open))
  (call $keep_max (global.get $open_peak) (local.get $open))
  (global.get $SUCCESS))

(func (export "path_readlink") (param $fd i32) (param $path i32) (param $size i32) (param $buffer i32)
  (param $buffer_size i32) (param $used i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 32))) (then (return (local.get $errno))))
  (call $judge (i32.const 32)
    (call $native.path_readlink (local.get $fd) (local.get $path) (local.get $size) (local.get $buffer)
      (local.get $buffer_size) (local.get $used))
    (local.get $path) (local.get $size)))

(func (export "path_remove_directory") (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 33))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $may_delete_one (i32.const 33) (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $judge (i32.const 33)
          (call $native.path_remove_directory (local.get $fd) (local.get $path) (local.get $size))
          (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $add (global.get $deleted) (i64.const 1))
  (global.get $SUCCESS))

;; To rename over something removes it, which is a right of its own.
(func (export "path_rename") (param $old_fd i32) (param $old i32) (param $old_size i32) (param $new_fd i32)
  (param $new i32) (param $new_size i32) (result i32)
  (local $errno i32) (local $replaces i32)
  (if (local.tee $errno (call $enter (i32.const 34))) (then (return (local.get $errno))))
  (local.set $replaces (call $exists (local.get $new_fd) (i32.const 0) (local.get $new) (local.get $new_size)))
  (if (local.get $replaces)
    (then
      (if (local.tee $errno (call $may_delete_one (i32.const 34) (local.get $new) (local.get $new_size)))
        (then (return (local.get $errno))))))
  (if (local.tee $errno
        (call $judge (i32.const 34)
          (call $native.path_rename (local.get $old_fd) (local.get $old) (local.get $old_size) (local.get $new_fd)
            (local.get $new) (local.get $new_size))
          (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (call $add (global.get $deleted) (i64.extend_i32_u (local.get $replaces)))
  (global.get $SUCCESS))

(func (export "path_symlink") (param $old i32) (param $old_size i32) (param $fd i32) (param $new i32)
  (param $new_size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 35))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $may_link_one (i32.const 35) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $judge (i32.const 35)
          (call $native.path_symlink (local.get $old) (local.get $old_size) (local.get $fd) (local.get $new)
            (local.get $new_size))
          (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (call $add (global.get $created) (i64.const 1))
  (global.get $SUCCESS))

(func (export "path_unlink_file") (param $fd i32) (param $path i32) (param $size i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 36))) (then (return (local.get $errno))))
  (if (local.tee $errno (call $may_delete_one (i32.const 36) (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $judge (i32.const 36)
          (call $native.path_unlink_file (local.get $fd) (local.get $path) (local.get $size))
          (local.get $path) (local.get $size)))
    (then (return (local.get $errno))))
  (call $add (global.get $deleted) (i64.const 1))
  (global.get $SUCCESS))

;; -- waiting --------------------------------------------------------------------------------------------------------

;; Native WASI waits as long as it is told, out of reach of any deadline, and holds the thread. So the guard serves polls
;; itself: each clock subscription is put down as a deadline on the monotonic clock, files and outputs are always ready,
;; stdin is when the host has put more of it in place. While nothing is ready, the guest is halted.
(func (export "poll_oneoff") (param $in i32) (param $out i32) (param $count i32) (param $events i32) (result i32)
  (local $errno i32) (local $size i32) (local $copy i32) (local $deadlines i32) (local $began i64) (local $now i64)
  (local $ready i32) (local $due i64) (local $clocks i32) (local $virtual i32)
  (if (local.tee $errno (call $enter (i32.const 37))) (then (return (local.get $errno))))
  (if (i32.or (i32.eqz (local.get $count)) (i32.gt_u (local.get $count) (global.get $POLL_MAX)))
    (then (return (global.get $EINVAL))))
  (local.set $size (i32.mul (local.get $count) (global.get $SUBSCRIPTION_SIZE)))
  (call $check (local.get $in) (i64.extend_i32_u (local.get $size)))
  (call $check (local.get $out) (i64.extend_i32_u (i32.mul (local.get $count) (global.get $EVENT_SIZE))))
  (call $check (local.get $events) (i64.const 4))
  ;; Where events would be written over subscriptions, the guest is confused.
  (if (i32.and
        (i32.lt_u (local.get $in) (i32.add (local.get $out) (i32.mul (local.get $count) (global.get $EVENT_SIZE))))
        (i32.lt_u (local.get $out) (i32.add (local.get $in) (local.get $size))))
    (then (return (global.get $EINVAL))))
  ;; The subscriptions as they are now, and a deadline for each.
  (local.set $copy (i32.load $state (global.get $scratch)))
  (local.set $deadlines (i32.add (local.get $copy) (local.get $size)))
  (call $reserve (i64.extend_i32_u (i32.add (local.get $deadlines) (i32.shl (local.get $count) (i32.const 3)))))
  (memory.copy $state $guest (local.get $copy) (local.get $in) (local.get $size))
  (if (local.tee $errno (call $unfit (local.get $copy) (local.get $count))) (then (return (local.get $errno))))
  (local.set $virtual (i32.eq (i32.load $state (global.get $clock_mode)) (global.get $CLOCK_VIRTUAL)))
  (local.set $now (call $now_for_waits (i32.const 1)))
  (local.set $clocks
    (call $set_deadlines (local.get $copy) (local.get $deadlines) (local.get $count) (local.get $now)))
  (local.set $began (call $time))
  (loop $again
    (local.set $ready
      (call $settle (local.get $out) (local.get $copy) (local.get $deadlines) (local.get $count) (local.get $now)))
    (if (i32.eqz (local.get $ready))
      (then
        (local.set $due (call $earliest (local.get $deadlines) (local.get $count)))
        (if (i32.and (local.get $virtual) (i32.ne (local.get $clocks) (i32.const 0)))
          ;; On the virtual clock nobody waits: it moves on.
          (then (i64.store $state (global.get $virtual_now) (local.get $due)))
          (else
            (call $rest (i32.const 37) (local.get $began)
              (select (i64.const -1) (i64.sub (local.get $due) (local.get $now))
                (i64.eq (local.get $due) (i64.const -1))))))
        (local.set $now (call $now_for_waits (i32.const 1)))
        (br $again))))
  (i32.store $guest (local.get $events) (local.get $ready))
  (global.get $SUCCESS))

;; The errno for a poll in which a subscription is not fit, as native WASI has it: EINVAL for a clock that cannot be
;; waited for, EBADF for a descriptor that is no file and not open that way.
(func $unfit (param $copy i32) (param $count i32) (result i32)
  (local $type i32) (local $of i32) (local $kind i32)
  (loop $next
    (local.set $type (i32.load8_u $state offset=8 (local.get $copy)))
    (local.set $of (i32.load $state offset=16 (local.get $copy)))
    (if (i32.eqz (local.get $type))
      (then (if (i32.gt_u (local.get $of) (i32.const 1)) (then (return (global.get $EINVAL)))))
      (else
        (if (i32.gt_u (local.get $type) (i32.const 2)) (then (return (global.get $EINVAL))))
        (local.set $kind (call $kind (local.get $of)))
        (if (call $is_file (local.get $of))
          (then
            (if (i64.eq (call $position (local.get $of)) (i64.const -1)) (then (return (global.get $EBADF)))))
          (else
            (if (i32.eqz
                  (if (result i32) (i32.eq (local.get $type) (i32.const 1))
                    (then (i32.eq (local.get $kind) (global.get $STDIN)))
                    (else
                      (i32.or (i32.eq (local.get $kind) (global.get $STDOUT))
                              (i32.eq (local.get $kind) (global.get $STDERR))))))
              (then (return (global.get $EBADF))))))))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (global.get $SUCCESS))

;; The time against which waits are measured: that of the clock which the guest sees.
(func $now_for_waits (param $clock i32) (result i64)
  (if (result i64) (i32.eq (i32.load $state (global.get $clock_mode)) (global.get $CLOCK_VIRTUAL))
    (then (call $virtual (local.get $clock)))
    (else (call $now (local.get $clock)))))

;; Writes the monotonic time at which each clock subscription is due, or the end of time for one of another kind. Returns
;; how many clock subscriptions there are.
(func $set_deadlines (param $copy i32) (param $deadlines i32) (param $count i32) (param $begin i64)
  (result i32)
  (local $due i64) (local $timeout i64) (local $clock i32) (local $clocks i32) (local $real i64)
  (loop $next
    (local.set $due (i64.const -1))
    (local.set $clock (i32.load $state offset=16 (local.get $copy)))
    (if (i32.eqz (i32.load8_u $state offset=8 (local.get $copy)))
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
                (local.set $real (call $now_for_waits (i32.const 0)))
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

;; The nearest of the deadlines.
(func $earliest (param $deadlines i32) (param $count i32) (result i64)
  (local $least i64)
  (local.set $least (i64.const -1))
  (loop $next
    (if (i64.lt_u (i64.load $state (local.get $deadlines)) (local.get $least))
      (then (local.set $least (i64.load $state (local.get $deadlines)))))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (local.get $least))

;; Writes an event for each subscription that is due or ready. Returns how many there are.
(func $settle (param $out i32) (param $copy i32) (param $deadlines i32) (param $count i32) (param $now i64)
  (result i32)
  (local $type i32) (local $ready i32) (local $bytes i64) (local $is i32)
  (loop $next
    (local.set $type (i32.load8_u $state offset=8 (local.get $copy)))
    (local.set $bytes (i64.const 1))
    (local.set $is (i32.const 1))
    (if (i32.eqz (local.get $type))
      (then
        (local.set $bytes (i64.const 0))
        (local.set $is (i64.le_u (i64.load $state (local.get $deadlines)) (local.get $now))))
      (else
        (if (i32.eq (call $kind (i32.load $state offset=16 (local.get $copy))) (global.get $STDIN))
          (then
            (local.set $is (call $has_stdin))
            (local.set $bytes
              (i64.extend_i32_u
                (i32.sub (i32.load $state (global.get $stdin_size)) (i32.load $state (global.get $stdin_read)))))))))
    (if (local.get $is)
      (then
        (memory.fill $guest (local.get $out) (i32.const 0) (global.get $EVENT_SIZE))
        (i64.store $guest (local.get $out) (i64.load $state (local.get $copy)))   ;; the user's data
        (i32.store8 $guest offset=10 (local.get $out) (local.get $type))
        (i64.store $guest offset=16 (local.get $out) (local.get $bytes))
        (local.set $out (i32.add (local.get $out) (global.get $EVENT_SIZE)))
        (local.set $ready (i32.add (local.get $ready) (i32.const 1)))))
    (local.set $copy (i32.add (local.get $copy) (global.get $SUBSCRIPTION_SIZE)))
    (local.set $deadlines (i32.add (local.get $deadlines) (i32.const 8)))
    (br_if $next (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
  (local.get $ready))

;; -- processes, randomness, scheduling ------------------------------------------------------------------------------

;; Ends the run by a trap, with the code noted where only the guard can write: every code is passed on as it is. Leaving
;; is never refused.
(func (export "proc_exit") (param $code i32)
  (call $count (i32.const 38))
  (i32.store $state (global.get $exit_code) (local.get $code))
  (i32.store $state (global.get $exited) (i32.const 1))
  (unreachable))

(func (export "proc_raise") (param $signal i32) (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 39))) (then (return (local.get $errno))))
  (call $native.proc_raise (local.get $signal)))

(func (export "random_get") (param $buffer i32) (param $size i32) (result i32)
  (local $errno i32) (local $total i64)
  (if (local.tee $errno (call $enter (i32.const 40))) (then (return (local.get $errno))))
  (call $check (local.get $buffer) (i64.extend_i32_u (local.get $size)))
  (local.set $total (i64.add (i64.load $state (global.get $random)) (i64.extend_i32_u (local.get $size))))
  (if (i64.gt_u (local.get $total) (i64.load $state (global.get $random_limit)))
    (then
      (if (local.tee $errno
            (call $refuse (global.get $KIND_random_bytes) (i32.const 40)
              (i64.load $state (global.get $random_limit)) (local.get $total) (global.get $EDQUOT)))
        (then (return (local.get $errno))))))
  (if (local.tee $errno
        (if (result i32) (i32.load $state (global.get $random_mode))
          (then (call $seeded (local.get $buffer) (local.get $size)))
          (else (call $entropy (local.get $buffer) (local.get $size)))))
    (then (return (local.get $errno))))
  (i64.store $state (global.get $random) (local.get $total))
  (global.get $SUCCESS))

;; Randomness of the host, a piece at a time: the loop is where the engine looks up and counts fuel.
(func $entropy (param $buffer i32) (param $size i32) (result i32)
  (local $errno i32) (local $part i32)
  (block $done
    (loop $next
      (br_if $done (i32.eqz (local.get $size)))
      (local.set $part (local.get $size))
      (if (i32.gt_u (local.get $part) (i32.const 4096)) (then (local.set $part (i32.const 4096))))
      (if (local.tee $errno (call $native.random_get (local.get $buffer) (local.get $part)))
        (then (return (local.get $errno))))
      (local.set $buffer (i32.add (local.get $buffer) (local.get $part)))
      (local.set $size (i32.sub (local.get $size) (local.get $part)))
      (br $next)))
  (global.get $SUCCESS))

;; SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), eight bytes a step, lowest
;; first; what is left of the last step is dropped.
(func $seeded (param $buffer i32) (param $size i32) (result i32)
  (local $z i64)
  (block $done
    (loop $next
      (br_if $done (i32.eqz (local.get $size)))
      (local.set $z (i64.add (i64.load $state (global.get $random_state)) (i64.const 0x9e3779b97f4a7c15)))
      (i64.store $state (global.get $random_state) (local.get $z))
      (local.set $z
        (i64.mul (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 30))) (i64.const 0xbf58476d1ce4e5b9)))
      (local.set $z
        (i64.mul (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 27))) (i64.const 0x94d049bb133111eb)))
      (local.set $z (i64.xor (local.get $z) (i64.shr_u (local.get $z) (i64.const 31))))
      (if (i32.ge_u (local.get $size) (i32.const 8))
        (then
          (i64.store $guest (local.get $buffer) (local.get $z))
          (local.set $buffer (i32.add (local.get $buffer) (i32.const 8)))
          (local.set $size (i32.sub (local.get $size) (i32.const 8)))
          (br $next)))
      (loop $byte
        (i64.store8 $guest (local.get $buffer) (local.get $z))
        (local.set $z (i64.shr_u (local.get $z) (i64.const 8)))
        (local.set $buffer (i32.add (local.get $buffer) (i32.const 1)))
        (br_if $byte (local.tee $size (i32.sub (local.get $size) (i32.const 1)))))))
  (global.get $SUCCESS))

(func (export "sched_yield") (result i32)
  (local $errno i32)
  (if (local.tee $errno (call $enter (i32.const 41))) (then (return (local.get $errno))))
  (call $native.sched_yield))

;; -- sockets: there are none in preview 1 that a guest could open, and the policy refuses these ------------------------

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

;; -- functions of the embedder -----------------------------------------------------------------------------------------

;; Before a function that the embedder lends. It has no errno to be refused with, so that beyond a limit the run ends.
(func (export "host_call")
  (if (call $enter (global.get $HOST)) (then (call $end_run (global.get $STOP_DENIED)))))

;; -- growth ---------------------------------------------------------------------------------------------------------

;; Asks whether memories and tables may have so many bytes more. If not, notes it, and ends the run where the policy
;; says so: a guest may ignore the -1 it gets, the report does not.
(func $may_have (param $more i64) (param $refusals i32) (result i32)
  (local $asked i64)
  (local.set $asked (i64.add (i64.load $state (global.get $memory_used)) (local.get $more)))
  (if (i64.le_u (local.get $asked) (i64.load $state (global.get $memory_limit))) (then (return (i32.const 1))))
  (call $add (local.get $refusals) (i64.const 1))
  (call $keep_max (global.get $memory_asked) (local.get $asked))
  (if (i32.load $state (global.get $on_memory)) (then (call $end_run (global.get $STOP_MEMORY))))
  (i32.const 0))

;; Asks whether memories and tables may grow by so many bytes now. What is refused does not count.
(func $may_grow_now (param $bytes i64) (param $refusals i32) (result i32)
  (local $now i64) (local $asked i64)
  (if (i64.eq (i64.load $state (global.get $growth_rate)) (i64.const -1)) (then (return (i32.const 1))))
  (local.set $now (i64.or (call $time) (i64.const 1)))
  (if (i32.or
        (i64.eqz (i64.load $state (global.get $growth_window)))
        (i64.ge_u (i64.sub (local.get $now) (i64.load $state (global.get $growth_window))) (i64.const 1000000000)))
    (then
      (i64.store $state (global.get $growth_window) (local.get $now))
      (i64.store $state (global.get $growth_in_window) (i64.const 0))))
  (local.set $asked (i64.add (i64.load $state (global.get $growth_in_window)) (local.get $bytes)))
  (if (i64.le_u (local.get $asked) (i64.load $state (global.get $growth_rate))) (then (return (i32.const 1))))
  (call $add (local.get $refusals) (i64.const 1))
  (call $keep_max (global.get $growth_asked) (local.get $asked))
  (if (i32.load $state (global.get $on_memory)) (then (call $end_run (global.get $STOP_MEMORY))))
  (i32.const 0))

;; The weaver makes a copy of this for each memory that the guest grows.
(func (export "memory_grow") (param $pages i32) (result i32)
  (local $bytes i64) (local $before i32)
  (local.set $bytes (i64.shl (i64.extend_i32_u (local.get $pages)) (i64.const 16)))
  (if (i32.eqz (call $may_have (local.get $bytes) (global.get $memory_refusals))) (then (return (i32.const -1))))
  (if (i32.eqz (call $may_grow_now (local.get $bytes) (global.get $growth_refusals))) (then (return (i32.const -1))))
  (if (i32.ne (local.tee $before (memory.grow $guest (local.get $pages))) (i32.const -1))
    (then
      (call $add (global.get $memory_used) (local.get $bytes))
      (call $add (global.get $growth_in_window) (local.get $bytes))))
  (local.get $before))

(func $may_have_elements (param $more i32) (result i32)
  (local $asked i64) (local $bytes i64)
  (local.set $bytes (i64.shl (i64.extend_i32_u (local.get $more)) (i64.const 3)))
  (local.set $asked (i64.add (i64.load $state (global.get $table_used)) (i64.extend_i32_u (local.get $more))))
  (if (i64.gt_u (local.get $asked) (i64.load $state (global.get $table_limit)))
    (then
      (call $add (global.get $table_refusals) (i64.const 1))
      (call $keep_max (global.get $table_asked) (local.get $asked))
      (if (i32.load $state (global.get $on_memory)) (then (call $end_run (global.get $STOP_MEMORY))))
      (return (i32.const 0))))
  (if (i32.eqz (call $may_have (local.get $bytes) (global.get $table_memory_refusals))) (then (return (i32.const 0))))
  (call $may_grow_now (local.get $bytes) (global.get $table_growth_refusals)))

(func $had_elements (param $more i32)
  (local $bytes i64)
  (local.set $bytes (i64.shl (i64.extend_i32_u (local.get $more)) (i64.const 3)))
  (call $add (global.get $table_used) (i64.extend_i32_u (local.get $more)))
  (call $add (global.get $memory_used) (local.get $bytes))
  (call $add (global.get $growth_in_window) (local.get $bytes)))

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
