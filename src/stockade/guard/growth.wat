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

;; After a memory or table was to grow by bytes that were reserved: settles. `before` is what memory.grow or table.grow said: -1 where it did not grow.
(func $settle_growth (param $before i64) (param $bytes i64)
  (if (i64.eq (local.get $before) (i64.const -1))
    (then (call $add (global.get $memory_used) (i64.sub (i64.const 0) (local.get $bytes))))
    (else (drop (call $spend (global.get $growth_tokens) (local.get $bytes))))))

;; Before a memory or table grows: asks, and reserves. The weaver makes a function for each that the guest grows: it calls
;; this, grows, and calls $settle_pages or $settle_elements. Numbers are of 64 bits, whatever the addresses have.
(func (export "reserve_pages") (param $pages i64) (result i32)
  (local $bytes i64)
  (local.set $bytes (call $page_bytes (local.get $pages)))
  (if (i32.eqz (call $may_have (local.get $bytes) (global.get $memory_refusals) (global.get $growth_refusals)))
    (then (return (i32.const 0))))
  (call $add (global.get $memory_used) (local.get $bytes))
  ;; The engine has one limit for memories and for the heap of objects, which must not have more than its share.
  (if (i32.load $state (global.get $shares_heap))
    (then (call $wait (global.get $HOST) (global.get $FOR_GROWTH))))
  (i32.const 1))

(func (export "settle_pages") (param $before i64) (param $pages i64)
  (if (i32.load $state (global.get $shares_heap))
    (then (call $wait (global.get $HOST) (global.get $FOR_HEAP))))
  (call $settle_growth (local.get $before) (call $page_bytes (local.get $pages))))

;; More than there can be counts as all that can be told.
(func $page_bytes (param $pages i64) (result i64)
  (select (i64.const -1) (i64.shl (local.get $pages) (i64.const 16))
    (i64.ge_u (local.get $pages) (i64.const 0x1000000000000))))

(func (export "reserve_elements") (param $more i64) (result i32)
  (local $asked i64)
  (local.set $asked (call $sum (i64.load $state (global.get $table_used)) (local.get $more)))
  (if (i64.gt_u (local.get $asked) (i64.load $state (global.get $table_limit)))
    (then
      (call $refuse_growth (global.get $table_refusals) (global.get $table_asked) (local.get $asked))
      (return (i32.const 0))))
  (if (i32.eqz
        (call $may_have (call $element_bytes (local.get $more)) (global.get $table_memory_refusals)
          (global.get $table_growth_refusals)))
    (then (return (i32.const 0))))
  (call $add (global.get $table_used) (local.get $more))
  (call $add (global.get $memory_used) (call $element_bytes (local.get $more)))
  (i32.const 1))

(func (export "settle_elements") (param $before i64) (param $more i64)
  (if (i64.eq (local.get $before) (i64.const -1))
    (then (call $add (global.get $table_used) (i64.sub (i64.const 0) (local.get $more)))))
  (call $settle_growth (local.get $before) (call $element_bytes (local.get $more))))

(func $element_bytes (param $elements i64) (result i64)
  (select (i64.const -1) (i64.shl (local.get $elements) (i64.const 3))
    (i64.ge_u (local.get $elements) (i64.const 0x2000000000000000))))
