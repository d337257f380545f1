;; Calls about paths, but for opening one.

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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_create_directory)
          (global.get $path) (local.get $fd) (local.get $name) (local.get $size)))
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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_filestat_get)
          (global.get $path) (local.get $fd) (local.get $name) (local.get $size)))
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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_filestat_set_times)
          (global.get $path) (local.get $fd) (local.get $name) (local.get $size)))
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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_link)
          (global.get $path) (local.get $new_fd) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $take_path (global.get $N.path_link)
          (global.get $path2) (local.get $old_fd) (local.get $old) (local.get $old_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $check_names (global.get $N.path_link) (local.get $old_fd) (local.get $new_fd) (local.get $new_size)))
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

(func (export "path_readlink") (param $fd i32) (param $name i32) (param $size i32) (param $buffer i32)
  (param $buffer_size i32) (param $used i32) (result i32)
  (local $errno i32) (local $got i32)
  (if (local.tee $errno (call $enter (global.get $N.path_readlink))) (then (return (local.get $errno))))
  (call $check (local.get $used) (i64.const 4) (i32.const 4))
  (call $check (local.get $buffer) (i64.extend_i32_u (local.get $buffer_size)) (i32.const 1))
  (if (local.tee $errno
        (call $take_path (global.get $N.path_readlink)
          (global.get $path) (local.get $fd) (local.get $name) (local.get $size)))
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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_remove_directory)
          (global.get $path) (local.get $fd) (local.get $name) (local.get $size)))
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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_unlink_file)
          (global.get $path) (local.get $fd) (local.get $name) (local.get $size)))
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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_rename)
          (global.get $path) (local.get $new_fd) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $take_path (global.get $N.path_rename)
          (global.get $path2) (local.get $old_fd) (local.get $old) (local.get $old_size)))
    (then (return (local.get $errno))))
  (if (i32.or (call $has_list (local.get $old_fd)) (call $has_list (local.get $new_fd)))
    (then
      (if (local.tee $errno
            (call $look (local.get $old_fd) (global.get $NOFOLLOW) (global.get $path2) (local.get $old_size)))
        (then
          (return
            (call $judge (global.get $N.path_rename) (local.get $errno) (global.get $path2) (local.get $old_size)))))
      (if (i32.ne (call $type_found) (global.get $REGULAR))
        (then (return (call $unlisted (global.get $N.path_rename) (global.get $path2) (local.get $old_size)))))))
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
  (if (local.tee $errno
        (call $take_path (global.get $N.path_symlink)
          (global.get $path) (local.get $fd) (local.get $new) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno (call $take_text (global.get $path2) (local.get $fd) (local.get $old) (local.get $old_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $check_names (global.get $N.path_symlink) (local.get $fd) (local.get $fd) (local.get $new_size)))
    (then (return (local.get $errno))))
  (if (local.tee $errno
        (call $check_link (global.get $N.path_symlink) (local.get $fd) (global.get $path) (local.get $new_size)))
    (then (return (local.get $errno))))
  (local.set $spent (call $creating))
  (call $settle_create (global.get $N.path_symlink)
    (call $native.path_symlink (global.get $path2) (local.get $old_size) (local.get $fd) (global.get $path)
      (local.get $new_size))
    (local.get $spent) (global.get $path) (local.get $new_size)))
