;; Growth of memories and tables.

;; -- growth ---------------------------------------------------------------------------------------------------------

;; Growth is refused: notes it, and ends the run where the policy says so. A guest may ignore the -1 it gets, the report
;; does not.
(func $refuse_growth (param $refusals i32) (param $most i32) (param $asked i64)
  (local $reason i32)
  (call $add (local.get $refusals) (i64.const 1))
  (call $keep_max (local.get $most) (local.get $asked))
  (local.set $reason (i32.load $state (global.get $on_memory)))
  (if (local.get $reason) (then (call $end_run (local.get $reason)))))

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
