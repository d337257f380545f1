// QuickJS as a reactor, with its own `std` and `os`: the host calls a function with each job, which returns a promise of
// its frame. Requests for tools go to a file, and are answered on standard input.
const driver = "<cmdline>", evaluated = "<evalScript>";
const actual = { ...std }, system = { ...os }, { puts, flush, close, seek, getline, read: readBytes, readAsString } = std.out;
const { evalScript, exit, open } = actual;
const Pledge = Promise;
let job = { __proto__: null, name: "<code>", session: false }, input = null, reads = false;
// Room for what is told where there is no memory left.
let spare = null;

function put(file) {
  return line => {
    apply(puts, file, [`${apply(toWellFormed, line, [])}\n`]);
    apply(flush, file, []);
  };
}

function exchange(request) {
  const file = open("/run/request", "w"), size = new ArrayBuffer(8);
  apply(puts, file, [request]);
  apply(close, file, []);
  if (apply(readBytes, actual.in, [size, 0, 8]) !== 8) exit(0);
  return apply(readAsString, actual.in, [new DataView(size).getUint32(0, true)]);
}

// Where the code ends the interpreter, its frame stays in a file.
function leave(told) {
  apply(flush, actual.out, []);
  apply(flush, actual.err, []);
  const result = open("/run/result", "w");
  if (!result) return;
  apply(puts, result, [told]);
  apply(flush, result, []);
}

// What the code reads, where jobs or answers come on standard input.
function given() {
  if (input === null) {
    input = open("/run/stdin", "w+");
    apply(puts, input, [job.stdin]);
    apply(seek, input, [0, 0]);
  }
  return input;
}

// Timers that are still to come, by what they were given; and what waits until there are none.
const timers = new Map();
const { set: note, delete: forget } = Map.prototype, countOf = Object.getOwnPropertyDescriptor(Map.prototype, "size").get;
let whenIdle = null;

function forgetTimer(id) {
  if (apply(forget, timers, [id]) && apply(countOf, timers, []) === 0) whenIdle?.();
}

const clock = {
  setTimeout(callback, delay = 0, ...args) {
    const id = system.setTimeout(() => {
      guarded(callback, args);
      forgetTimer(id);
    }, delay);
    apply(note, timers, [id, true]);
    return id;
  },
  setInterval(callback, delay = 0, ...args) {
    const id = system.setInterval(() => guarded(callback, args), delay);
    apply(note, timers, [id, true]);
    return id;
  },
  clearTimeout(id) {
    if (apply(forget, timers, [id])) system.clearTimeout(id);
    if (apply(countOf, timers, []) === 0) whenIdle?.();
  },
};
clock.clearInterval = clock.clearTimeout;

function makeReady() {
  globalThis.console = makeConsole(put(actual.out), put(actual.err));
  globalThis.print = console.log;
  const later = queueMicrotask;
  Object.assign(globalThis, clock, { queueMicrotask(callback) { later(() => guarded(callback, [])); } });
  globalThis.os = { ...os, ...clock };
  globalThis.std = { ...std, exit(code = 0) {
    code = code >>> 0;
    // Whoever types code means to leave, whatever the code is.
    leave(frame(nothing, code || job.echo ? {
      type: "Exit", message: `the code ended the interpreter with exit code ${code}`, traceback: "", line: null,
    } : null, code));
    exit(code);
  } };
  os.chdir("/workspace");
}

// Sets a variable: also one that the code has declared.
function set(name, value) {
  define(name, value);
  if (!job.session) return;
  try { evalScript(`(function () { ${name} = arguments[0]; })`)(value); } catch {}
}

// Runs the job; returns its frame.
async function perform() {
  spare ??= new ArrayBuffer(1 << 16);
  uncaught = null;
  const { inputs, env } = job, most = job.most;
  if (!reads && (job.session || job.tools.length || job.network)) {
    defineProperty(globalThis.std, "in", { __proto__: null, get: given, enumerable: true, configurable: true });
    reads = true;
  }
  const args = [job.name];
  for (let at = 0; at < job.args.length; at++) args[at + 1] = job.args[at];
  define("scriptArgs", args);
  if (job.tools.length && globalThis.tools === undefined) define("tools", makeTools(job.tools, exchange));
  if (job.network && globalThis.fetch === undefined) defineNetwork(exchange);
  for (let at = 0, names = keys(env); at < names.length; at++) actual.setenv(names[at], env[names[at]]);
  for (let at = 0, names = keys(inputs); at < names.length; at++) set(names[at], inputs[names[at]]);
  let value = nothing, error = null;
  try {
    const script = evalScript(job.code, { __proto__: null, async: true, backtrace_barrier: true });
    let found = (await script).value;
    if (isOf("Promise", found)) found = await found;
    spare = null;
    value = told(found, most);
    if (job.session && found !== undefined) define("_", found);
    if (job.echo && found !== undefined) apply(puts, actual.out, [`${cut(show(found, most), most)}\n`]);
  } catch (problem) {
    spare = null;
    error = failure(problem);
  }
  // What is still to come is the code's, too.
  if (apply(countOf, timers, [])) await new Pledge(done => { whenIdle = done; });
  whenIdle = null;
  if (uncaught !== null && error === null) {
    error = uncaught;
    value = nothing;
  }
  return frame(value, error, error ? 1 : 0);
}

makeReady();
define("stockade", {
  async perform(told) {
    job = parse(told);
    input = null;
    const frame = await perform();
    // For the job that comes after what is run ahead, it is there before: to write zeros takes a part of a short job.
    if (job.name === "<preload>") spare = new ArrayBuffer(1 << 16);
    apply(flush, actual.out, []);
    apply(flush, actual.err, []);
    return frame;
  },
  // Time that is over before it has begun: one of `setTimeout` takes a millisecond at least.
  settle: () => system.sleepAsync(-1),
});
