;; Constants of the guard: numbers that have names, for the guard and for whoever reads its state.

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

;; What is said in $mailbox, beside numbers of functions and 0.
(global $HOST_RETURNED      (export "HOST_RETURNED:const")       i32 (i32.const 0x7fffffff)) ;; by the guest: an export has returned
(global $HOST_END           (export "HOST_END:const")            i32 (i32.const -1)) ;; by the host: the run is over
(global $HOST_EXPORT        (export "HOST_EXPORT:const")         i32 (i32.const -0x80000000)) ;; by the host, with the number of an export: call that
(global $MAILBOX_VALUES     (export "MAILBOX_VALUES:const")      i32 (i32.const 1023)) ;; how many values there is room for

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
(global $FOR_GROWTH         (export "FOR_GROWTH:const")          i32 (i32.const 32)) ;; at once: the engine lets memories grow
(global $FOR_HEAP           (export "FOR_HEAP:const")            i32 (i32.const 64)) ;; at once: the engine holds the heap to its share

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
;; subject u32, action u16, where the subject begins u16 (see $starts), and the first bytes of the subject. The last entries are kept for kinds that have none yet,
;; so that a flood of one kind cannot push out the first of another.
(global $VIOLATION_SIZE     (export "VIOLATION_SIZE:const")      i32 (i32.const 128))
(global $VIOLATIONS_MAX     (export "VIOLATIONS_MAX:const")      i32 (i32.const 64))
;; An entry of $events, one for each time: kind u32, call u32, errno u32, action u32, limit u64, observed u64, at u64,
;; length of the subject u32, two bytes, where the subject begins u16, and at $SUBJECT its first bytes. The newest overwrites the oldest.
(global $EVENTS_MAX         (export "EVENTS_MAX:const")          i32 (i32.const 32))
(global $VIOLATIONS_COMMON                                       i32 (i32.const 48))
(global $SUBJECT            (export "SUBJECT:const")             i32 (i32.const 48)) ;; where the subject stands in an entry
(global $SUBJECT_MAX        (export "SUBJECT_MAX:const")         i32 (i32.const 80)) ;; how much of it is kept
(global $FOR_WRITING        (export "FOR_WRITING:const")         i32 (i32.const 0x8000)) ;; in where a path begins: it is opened for writing
(global $NOT_LISTED         (export "NOT_LISTED:const")          i32 (i32.const 0x4000)) ;; the same: the list of its mount does not name it

;; Kinds of descriptors in $kinds. As it was born, 0: then 0, 1 and 2 are stdin, stdout and stderr, and the next ones are
;; the mounts.
(global $STDIN              (export "STDIN:const")           i32 (i32.const 1))
(global $STDOUT                                                  i32 (i32.const 2))
(global $STDERR                                                  i32 (i32.const 3))
(global $FILE                                                    i32 (i32.const 4)) ;; opened by the guest: a file or a folder
(global $APPENDING                                               i32 (i32.const 5)) ;; a file, and every write goes to its end
(global $CLOSED             (export "CLOSED:const")          i32 (i32.const 6))
(global $MOUNT              (export "MOUNT:const")           i32 (i32.const 7))
(global $MAX_DESCRIPTORS    (export "MAX_DESCRIPTORS:const")     i32 (i32.const 4096))
(global $SIZES_MAX                                               i32 (i32.const 1024))

;; What may be named where a mount has a list (see listed.wat). An entry: address of its path u32, size u32, flags u32,
;; address of its list u32.
(global $EVERYTHING         (export "EVERYTHING:const")          i32 (i32.const 1)) ;; a scope: all that is there
(global $ENTRY_SIZE         (export "ENTRY_SIZE:const")          i32 (i32.const 16))
(global $ENTRY_ONE          (export "ENTRY_ONE:const")           i32 (i32.const 0)) ;; flags: what has this name
(global $ENTRY_BELOW        (export "ENTRY_BELOW:const")         i32 (i32.const 1)) ;; a folder and everything below it
(global $ENTRY_ROOT         (export "ENTRY_ROOT:const")          i32 (i32.const 2)) ;; the root of a mount
(global $ENTRY_LISTED_ROOT  (export "ENTRY_LISTED_ROOT:const")   i32 (i32.const 3)) ;; one that may be listed
(global $WHOLE_PATH_MAX                                          i32 (i32.const 8196)) ;; two paths and a slash

;; How a call is traced, in $trace_rules.
(global $TRACE_PLAIN        (export "TRACE_PLAIN:const")         i32 (i32.const 1)) ;; without its duration
(global $TRACE_SLOW         (export "TRACE_SLOW:const")          i32 (i32.const 2)) ;; with its duration, unless it is about descriptor 1 or 2
(global $TRACE_TIMED        (export "TRACE_TIMED:const")         i32 (i32.const 3)) ;; with its duration
;; An entry of the trace: call u8, state u8, which answers there are u8, flags u8, errno u32, its number in the ring u64 (of
;; the rest of an entry: that of its beginning), when it began u64, when it ended u64 (0: not known), nine arguments u64
;; each, two answers u64 each, lengths of two texts u32 each, at 120; then the first bytes of both.
(global $TRACE_BEGUN                                             i32 (i32.const 0)) ;; states: the call has not returned
(global $TRACE_RETURNED     (export "TRACE_RETURNED:const")      i32 (i32.const 1))
(global $TRACE_REST         (export "TRACE_REST:const")          i32 (i32.const 2)) ;; it has returned, and the host had taken its beginning
(global $TRACE_HAS_TIME     (export "TRACE_HAS_TIME:const")      i32 (i32.const 0x80)) ;; flags, beside 1 and 2 for texts that are not in the guest's memory
(global $TRACE_ARGUMENTS    (export "TRACE_ARGUMENTS:const")     i32 (i32.const 32)) ;; where the arguments stand
(global $TRACE_ANSWERS      (export "TRACE_ANSWERS:const")       i32 (i32.const 104)) ;; where the answers do
(global $TRACE_TEXTS        (export "TRACE_TEXTS:const")         i32 (i32.const 128)) ;; and the texts

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
(global $O_TRUNC                                                 i32 (i32.const 8))
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
(global $SUBSCRIPTION_SIZE  (export "SUBSCRIPTION_SIZE:const")   i32 (i32.const 48))
(global $EVENT_SIZE                                              i32 (i32.const 32))
(global $FILESTAT_SIZE                                           i32 (i32.const 64))
(global $FDSTAT_SIZE                                             i32 (i32.const 24))
(global $DIRENT_SIZE                                             i32 (i32.const 24))
