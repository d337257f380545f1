;; Mounts of which only some paths may be named.
;;
;; A mount may have a list of paths below it. Where it has, a path is looked up there before native WASI is asked, so that
;; nothing is told of what it does not name: not even whether it is there. An entry names one thing (`a/b`), or a folder
;; and everything below it (`a/b/`).
;;
;; The list tells what a path may be called, not where it leads. So a guest must not make one name lead where another
;; one does: in such a mount it makes no links, and moves nothing but plain files.
;;
;; Each descriptor that begins there has a *scope*, by which paths that begin at it are looked up:
;;
;;   0           no list: all that native WASI permits
;;   EVERYTHING  a folder of the list, or something below one
;;   otherwise   the address of an entry: what stands there is where paths from here begin
;;
;; $granted leads to an address for each mount: of the entry of its root, or 0. An entry is: address of its path u32, size
;; of that u32, flags u32, address of its list u32. A list is: address of its first entry u32, how many u32.

(func $scope (param $fd i32) (result i32)
  (if (i32.eqz (i32.load $state (global.get $granted))) (then (return (i32.const 0))))
  (if (i32.ge_u (local.get $fd) (global.get $MAX_DESCRIPTORS)) (then (return (i32.const 0))))
  (if (i32.load8_u $state (i32.add (global.get $kinds) (local.get $fd)))
    (then (return (i32.load $state (call $scope_at (local.get $fd))))))
  ;; As it was born.
  (if (i32.ne (call $kind (local.get $fd)) (global.get $MOUNT)) (then (return (i32.const 0))))
  (i32.load $state
    (i32.add (i32.load $state (global.get $granted)) (i32.shl (i32.sub (local.get $fd) (i32.const 3)) (i32.const 2)))))

(func $scope_at (param $fd i32) (result i32)
  (i32.add (i32.load $state (global.get $scopes)) (i32.shl (local.get $fd) (i32.const 2))))

(func $set_scope (param $fd i32) (param $scope i32)
  (if (i32.eqz (i32.load $state (global.get $granted))) (then (return)))
  (if (i32.lt_u (local.get $fd) (global.get $MAX_DESCRIPTORS))
    (then (i32.store $state (call $scope_at (local.get $fd)) (local.get $scope)))))

;; Whether a path in $state may be named, which begins at a descriptor: 0, or the errno that refuses it. The scope of what
;; it leads to stands in $found.
(func $permit (param $number i32) (param $place i32) (param $fd i32) (param $size i32) (result i32)
  (local $scope i32)
  (if (i32.eqz (i32.load $state (global.get $granted))) (then (return (global.get $SUCCESS))))
  (i32.store $state (global.get $found) (i32.const 0))
  (if (i32.eqz (local.tee $scope (call $scope (local.get $fd)))) (then (return (global.get $SUCCESS))))
  (local.set $scope (call $look_up (local.get $number) (local.get $place) (local.get $size) (local.get $scope)))
  (i32.store $state (global.get $found) (local.get $scope))
  (if (local.get $scope) (then (return (global.get $SUCCESS))))
  (call $unlisted (local.get $number) (local.get $place) (local.get $size)))

;; The violation of naming what the list does not name. It is refused whatever the policy says about violations.
(func $unlisted (param $number i32) (param $place i32) (param $size i32) (result i32)
  (i32.store16 $state (call $start_of (local.get $place))
    (i32.or (i32.load16_u $state (call $start_of (local.get $place))) (global.get $NOT_LISTED)))
  (call $forbid (local.get $number) (global.get $EACCES) (local.get $place) (local.get $size))
  (global.get $EACCES))


;; The scope of what a path leads to, which begins where a scope says; 0 where it may not be named.
(func $look_up (param $number i32) (param $place i32) (param $size i32) (param $scope i32) (result i32)
  (local $whole i32) (local $length i32)
  (local.set $whole (call $io_buffer (global.get $WHOLE_PATH_MAX)))
  (if (i32.ne (local.get $scope) (global.get $EVERYTHING))
    (then
      (local.set $length (i32.load $state offset=4 (local.get $scope)))
      (memory.copy $state $state (local.get $whole) (i32.load $state (local.get $scope)) (local.get $length))))
  (local.set $length (call $append_path (local.get $place) (local.get $size) (local.get $whole) (local.get $length)))
  (if (i32.lt_s (local.get $length) (i32.const 0)) (then (return (i32.const 0))))
  (if (i32.eq (local.get $scope) (global.get $EVERYTHING)) (then (return (global.get $EVERYTHING))))
  (if (local.get $length)
    (then
      (return (call $find (i32.load $state offset=12 (local.get $scope)) (local.get $whole) (local.get $length)))))
  ;; The root: what fd_filestat_get tells of it, is told by path_filestat_get, too.
  (select (local.get $scope) (i32.const 0)
    (i32.or
      (call $is_listable (local.get $scope))
      (i32.eq (local.get $number) (global.get $N.path_filestat_get)))))

;; Whether the names in what an entry is about may be listed: of a root only where the list has it.
(func $is_listable (param $entry i32) (result i32)
  (i32.ne (i32.load $state offset=8 (local.get $entry)) (global.get $ENTRY_ROOT)))

;; Appends a path in $state to another one, part by part, without what means nothing: a part that is empty, or a dot.
;; Returns how long that is then; or -1 where it is not looked up: an absolute path, one that leads upwards, one with a
;; zero byte.
(func $append_path (param $path i32) (param $size i32) (param $whole i32) (param $length i32) (result i32)
  (local $end i32) (local $part i32) (local $letter i32)
  (local.set $end (i32.add (local.get $path) (local.get $size)))
  (if (local.get $size)
    (then (if (i32.eq (i32.load8_u $state (local.get $path)) (i32.const 47)) (then (return (i32.const -1))))))
  (loop $next
    (local.set $part (local.get $path))
    (block $slash
      (loop $more
        (br_if $slash (i32.ge_u (local.get $path) (local.get $end)))
        (br_if $slash (i32.eq (local.tee $letter (i32.load8_u $state (local.get $path))) (i32.const 47)))
        (if (i32.eqz (local.get $letter)) (then (return (i32.const -1))))
        (local.set $path (i32.add (local.get $path) (i32.const 1)))
        (br $more)))
    (local.set $size (i32.sub (local.get $path) (local.get $part)))
    (if (call $is_dots (local.get $part) (local.get $size) (i32.const 2)) (then (return (i32.const -1))))
    (if (i32.and
          (i32.ne (local.get $size) (i32.const 0))
          (i32.eqz (call $is_dots (local.get $part) (local.get $size) (i32.const 1))))
      (then
        (if (local.get $length)
          (then
            (i32.store8 $state (i32.add (local.get $whole) (local.get $length)) (i32.const 47))
            (local.set $length (i32.add (local.get $length) (i32.const 1)))))
        (memory.copy $state $state (i32.add (local.get $whole) (local.get $length)) (local.get $part) (local.get $size))
        (local.set $length (i32.add (local.get $length) (local.get $size)))))
    (local.set $path (i32.add (local.get $path) (i32.const 1)))
    (br_if $next (i32.le_u (local.get $path) (local.get $end))))
  (local.get $length))

;; Whether a part of a path is so many dots, one or two.
(func $is_dots (param $part i32) (param $size i32) (param $dots i32) (result i32)
  (if (i32.ne (local.get $size) (local.get $dots)) (then (return (i32.const 0))))
  (i32.and
    (i32.eq (i32.load8_u $state (local.get $part)) (i32.const 46))
    (i32.eq (i32.load8_u $state (i32.sub (i32.add (local.get $part) (local.get $size)) (i32.const 1))) (i32.const 46))))

;; The scope of a path from the root, by a list; 0 where the list does not name it.
(func $find (param $list i32) (param $path i32) (param $size i32) (result i32)
  (local $entry i32) (local $end i32) (local $named i32)
  (local.set $entry (i32.load $state (local.get $list)))
  (local.set $end
    (i32.add (local.get $entry)
      (i32.mul (i32.load $state offset=4 (local.get $list)) (global.get $ENTRY_SIZE))))
  (block $none
    (loop $next
      (br_if $none (i32.ge_u (local.get $entry) (local.get $end)))
      (local.set $named (i32.load $state offset=4 (local.get $entry)))
      (if (i32.eq (i32.load $state offset=8 (local.get $entry)) (global.get $ENTRY_BELOW))
        (then
          (if (call $is_below (local.get $path) (local.get $size) (i32.load $state (local.get $entry)) (local.get $named))
            (then (return (global.get $EVERYTHING)))))
        (else
          (if (i32.eq (local.get $size) (local.get $named))
            (then
              (if (call $is_same (local.get $path) (i32.load $state (local.get $entry)) (local.get $named))
                (then (return (local.get $entry))))))))
      (local.set $entry (i32.add (local.get $entry) (global.get $ENTRY_SIZE)))
      (br $next)))
  (i32.const 0))

;; Whether a path is that of a folder, or of something below it.
(func $is_below (param $path i32) (param $size i32) (param $folder i32) (param $folder_size i32) (result i32)
  (if (i32.lt_u (local.get $size) (local.get $folder_size)) (then (return (i32.const 0))))
  (if (i32.gt_u (local.get $size) (local.get $folder_size))
    (then
      (if (i32.ne (i32.load8_u $state (i32.add (local.get $path) (local.get $folder_size))) (i32.const 47))
        (then (return (i32.const 0))))))
  (call $is_same (local.get $path) (local.get $folder) (local.get $folder_size)))

;; Whether so many bytes are the same. From the last one on: paths differ at their ends.
(func $is_same (param $one i32) (param $other i32) (param $size i32) (result i32)
  (block $same
    (loop $next
      (br_if $same (i32.eqz (local.get $size)))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (br_if $next
        (i32.eq (i32.load8_u $state (i32.add (local.get $one) (local.get $size)))
                (i32.load8_u $state (i32.add (local.get $other) (local.get $size))))))
    (return (i32.const 0)))
  (i32.const 1))

;; Whether what is open may be listed, or changed itself: the root of a mount only where its list has it.
(func $permit_folder (param $number i32) (param $fd i32) (result i32)
  (local $scope i32)
  (local.set $scope (call $scope (local.get $fd)))
  (if (i32.le_u (local.get $scope) (global.get $EVERYTHING)) (then (return (global.get $SUCCESS))))
  (if (call $is_listable (local.get $scope)) (then (return (global.get $SUCCESS))))
  (i32.store8 $state (global.get $path) (i32.const 46))
  (i32.store16 $state (call $start_of (global.get $path)) (call $mount_number (local.get $fd)))
  (call $unlisted (local.get $number) (global.get $path) (i32.const 1)))

;; Whether a link may be made between two descriptors, at what stands in $path: not where one of them has a list.
(func $check_names (param $number i32) (param $fd i32) (param $other i32) (param $size i32) (result i32)
  (if (result i32) (i32.or (call $has_list (local.get $fd)) (call $has_list (local.get $other)))
    (then (call $unlisted (local.get $number) (global.get $path) (local.get $size)))
    (else (global.get $SUCCESS))))

(func $has_list (param $fd i32) (result i32)
  (i32.ne (call $scope (local.get $fd)) (i32.const 0)))
