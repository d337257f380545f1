// What runs in a QuickJS guest before the user's code: runs a job, and leaves a frame for it.
// The code that is run can do whatever it likes to what stands here: a frame that it forges says what it could have
// said anyway.
const stringify = JSON.stringify, parse = JSON.parse, out = std.open, input = std.in, text = String;
const lone = /\\ud[89a-f]/;
let job = first, most = 0, result = null;

function show(thing) {
  if (typeof thing === "string") return thing;
  if (typeof thing === "bigint") return `${thing}n`;
  if (thing instanceof Error) return text(thing.stack ? `${thing}\n${thing.stack}` : thing);
  if (typeof thing === "object" && thing !== null) {
    try { const told = stringify(thing); if (told !== undefined) return told; } catch {}
  }
  try { return text(thing); } catch { return typeof thing; }
}

function cut(told, size) { return text(told).toWellFormed().slice(0, size); }

function told(value) {
  try {
    const plain = value === null || typeof value !== "object" ? value : undefined;
    if (value === undefined) return ["null", false];
    if (!(typeof plain === "number" && !Number.isFinite(plain)) && !(value instanceof Error)) {
      const json = stringify(value);
      if (json !== undefined && json.length <= most / 3 && !lone.test(json)) return [json, false];
    }
  } catch {}
  return [stringify(cut(show(value), most / 8)), true];
}

function failure(problem) {
  const isError = problem instanceof Error;
  let name = "Error", message = "", stack = "";
  try { name = isError ? text(problem.name) : typeof problem; message = isError ? text(problem.message) : show(problem); } catch {}
  try { stack = isError ? text(problem.stack) : ""; } catch {}
  const lines = stack.split("\n").filter(line => line.includes("<evalScript>") || line.includes("/workspace/"))
    .map(line => line.replaceAll("<evalScript>", job.name)).slice(0, 100);
  const found = /:(\d+)(?::\d+)?\)?$/.exec(lines[0] ?? "");
  return { type: cut(name, 200), message: cut(message, 65536),
    traceback: cut([`${name}: ${message}`, ...lines, ""].join("\n"), 65536), line: found ? Number(found[1]) : null };
}

function writer(file) { return (...things) => { file.puts(things.map(show).join(" ") + "\n"); file.flush(); }; }

for (const name of ["log", "info", "debug"]) console[name] = writer(std.out);
for (const name of ["warn", "error", "trace"]) console[name] = writer(std.err);
globalThis.print = console.log;
os.chdir("/workspace");

async function perform() {
  globalThis.scriptArgs = [job.name, ...job.args];
  for (const [name, value] of Object.entries(job.env)) actual.setenv(name, value);
  for (const [name, value] of Object.entries(job.inputs)) globalThis[name] = value;
  let value = "null", shown = false, error = null;
  try {
    let found = (await actual.evalScript(job.code, { async: true, backtrace_barrier: true })).value;
    if (found instanceof Promise) found = await found;
    [value, shown] = told(found);
    if (job.echo && found !== undefined) actual.out.puts(cut(show(found), most) + "\n");
  } catch (problem) { error = failure(problem); }
  actual.out.flush();
  actual.err.flush();
  // Whoever has read the last one has emptied it.
  result ??= out("/run/result", "r+");
  if (result) {
    result.seek(0, 0);
    result.puts(`{"value":${value},"shown":${shown},"error":${stringify(error)},"exit":${error ? 1 : 0}}`);
    result.flush();
  }
}

if (job.preload) await (await std.evalScript(job.preload, { async: true })).value;
const actual = std;

function reader(whole) {
  let rest = whole;
  return {
    getline() {
      if (rest === "") return null;
      const [line] = rest.split("\n", 1);
      rest = rest.slice(line.length + 1);
      return line;
    },
    readAsString() { const all = rest; rest = ""; return all; },
  };
}

do {
  if (job.session) {
    const line = input.getline();
    if (line === null) break;
    job = parse(line);
    // What jobs come on is not for the code.
    globalThis.std = { ...actual, in: reader(job.stdin) };
  }
  most = job.most;
  await perform();
} while (job.session);
