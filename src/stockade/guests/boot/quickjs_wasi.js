// QuickJS as npm's quickjs-wasi has it: neither files nor standard input nor timers. What goes out goes by host functions:
// output, requests for tools, and code to be run, which the host runs in the guest.
const driver = "<stockade>", evaluated = "\0";
const { out, err, tool, evaluate } = host;
let job = { __proto__: null, name: "<code>" }, rest = "", spare = null;

const console = makeConsole(line => out(`${apply(toWellFormed, line, [])}\n`), line => err(`${apply(toWellFormed, line, [])}\n`));
Object.assign(globalThis, { console, print: console.log, std: {
  in: {
    getline() {
      if (rest === "") return null;
      const end = apply(indexOf, rest, ["\n"]), line = end < 0 ? rest : apply(slice, rest, [0, end]);
      rest = end < 0 ? "" : apply(slice, rest, [end + 1]);
      return line;
    },
    readAsString() {
      const all = rest;
      rest = "";
      return all;
    },
  },
  getenv(name) { return variables[name]; },
  getenviron() { return { ...variables }; },
} });
delete globalThis.host;
const variables = { __proto__: null };

// What nobody has caught, by the promises that hold it.
const failed = new Map();
const { set: note, delete: forget, clear } = Map.prototype;

return {
  rejected(promise, reason, isHandled) {
    if (isHandled) apply(forget, failed, [promise]);
    else apply(note, failed, [promise, reason]);
  },

  async perform(text) {
    job = parse(text);
    rest = job.stdin;
    // Room for what is told where there is no memory left.
    spare = new ArrayBuffer(1 << 16);
    const { inputs, env, most } = job;
    const args = [job.name];
    for (let at = 0; at < job.args.length; at++) args[at + 1] = job.args[at];
    define("scriptArgs", args);
    if (job.tools.length && globalThis.tools === undefined) define("tools", makeTools(job.tools, tool));
    if (job.network && globalThis.fetch === undefined) defineNetwork(tool);
    for (let at = 0, names = keys(env); at < names.length; at++) variables[names[at]] = env[names[at]];
    for (let at = 0, names = keys(inputs); at < names.length; at++) {
      define(names[at], inputs[names[at]]);
      if (job.session) try { evaluate(`(function () { ${names[at]} = arguments[0]; })`, "", false)(inputs[names[at]]); } catch {}
    }
    try {
      let found = (await evaluate(job.code, job.name, true)).value;
      if (isOf("Promise", found)) found = await found;
      spare = null;
      const value = told(found, most);
      if (job.session && found !== undefined) define("_", found);
      if (job.echo && found !== undefined) out(`${cut(show(found, most), most)}\n`);
      return frame(value, null, 0);
    } catch (problem) {
      spare = null;
      return frame(nothing, failure(problem), 1);
    }
  },

  // What has become of the frame, when nothing is left to be done.
  settle(made, problem) {
    spare = null;
    let error = problem === undefined ? null : failure(problem);
    if (made === undefined && error === null) {
      error = { type: "Error", line: null, traceback: "", message: "the code awaits a promise that nothing can settle" };
    }
    apply(eachOfMap, failed, [reason => { error ??= failure(reason); }]);
    apply(clear, failed, []);
    return error === null ? made : frame(nothing, error, 1);
  },
};
