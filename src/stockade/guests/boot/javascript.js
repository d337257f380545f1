// What runs in a JavaScript guest before the user's code: tells values and errors, and calls tools.
// The code that is run can do whatever it likes to what it finds: a frame that it forges says what it could have said
// anyway. What is needed after it has run is taken before, so that what it replaces is missed by itself alone.
const { stringify, parse } = JSON;
const { apply, getPrototypeOf, setPrototypeOf, defineProperty } = Reflect;
const { keys } = Object, { isArray } = Array, { isFinite } = Number, text = String, TypeProblem = TypeError, Problem = Error;
const { slice, isWellFormed, toWellFormed, indexOf, lastIndexOf, charCodeAt, startsWith } = String.prototype;
const { join } = Array.prototype, number = Number, { forEach: eachOfMap, get: find } = Map.prototype;
const { forEach: eachOfSet } = Set.prototype, { toString: pattern } = RegExp.prototype;
const deepest = 200, mostDigits = 4000, mostText = 65536, mostLines = 100;

// What objects are, by the prototypes that they come from.
const kinds = new Map([[Object.prototype, "Object"]]);
for (const name of ["Number", "String", "Boolean", "BigInt", "Symbol", "Date", "RegExp", "Error", "Promise", "Map", "Set",
  "WeakMap", "WeakSet", "WeakRef", "FinalizationRegistry", "ArrayBuffer", "SharedArrayBuffer", "DataView", "Iterator"]) {
  if (globalThis[name]?.prototype) kinds.set(globalThis[name].prototype, name);
}
kinds.set(getPrototypeOf(getPrototypeOf([][Symbol.iterator]())), "Iterator");
kinds.set(getPrototypeOf(getPrototypeOf(async function* () {}.prototype)), "AsyncIterator");
kinds.set(getPrototypeOf(Uint8Array.prototype), "TypedArray");
const typeOfArray = Object.getOwnPropertyDescriptor(getPrototypeOf(Uint8Array.prototype), Symbol.toStringTag).get;
const unboxed = { __proto__: null, Number: Number.prototype.valueOf, String: String.prototype.valueOf,
  Boolean: Boolean.prototype.valueOf, BigInt: BigInt.prototype.valueOf };
const native = { __proto__: null, Error: true, TypeError: true, RangeError: true, SyntaxError: true, ReferenceError: true,
  EvalError: true, URIError: true, AggregateError: true, InternalError: true };

const nothing = { __proto__: null, json: "null", shown: false };
const unfit = { __proto__: null }, full = { __proto__: null };

function kindOf(thing) {
  let from = thing;
  for (let step = 0; step < deepest && (from = getPrototypeOf(from)) !== null; step++) {
    const kind = apply(find, kinds, [from]);
    if (kind !== undefined) return kind;
  }
  return "Object";
}

// The name of the class that an object is of, where that is not one of the language's own.
function className(thing) {
  try {
    const { name } = getPrototypeOf(thing).constructor;
    return typeof name === "string" && name !== "Object" ? cut(name, 200) : "";
  } catch { return ""; }
}

function cut(told, size) {
  const whole = text(told);
  if (whole.length <= size) return apply(toWellFormed, whole, []);
  const half = size >> 1;
  return apply(toWellFormed, `${apply(slice, whole, [0, half])}\n…\n${apply(slice, whole, [-half])}`, []);
}

// Writes a value: as JSON, or, where it is shown, in a notation that also has what JSON does not know.
function write(value, room, isShown) {
  const pieces = [];
  setPrototypeOf(pieces, null);
  let count = 0;

  function put(piece) {
    if ((room -= piece.length) < 0) throw full;
    pieces[count++] = piece;
  }

  function other(piece) {
    if (!isShown) throw unfit;
    put(piece);
  }

  function list(thing, size, up, depth) {
    put("[");
    for (let at = 0; at < size; at++) {
      if (at) put(",");
      member(thing, at, up, depth, "null");
    }
    put("]");
  }

  function member(thing, key, up, depth, missing) {
    let found;
    try { found = thing[key]; } catch (problem) {
      if (!isShown) throw unfit;
      return put(`[threw ${failure(problem).type}]`);
    }
    if (found === undefined && !isShown) put(missing);
    else any(found, up, depth + 1, key);
  }

  function fields(thing, up, depth) {
    put("{");
    const names = keys(thing), size = names.length;
    for (let at = 0, first = true; at < size; at++) {
      const name = names[at];
      if (!isShown && thing[name] === undefined) continue;
      if (!isShown && !apply(isWellFormed, name, [])) throw unfit;
      put(`${first ? "" : ","}${stringify(name)}:`);
      first = false;
      member(thing, name, up, depth, "null");
    }
    put("}");
  }

  function object(thing, up, depth, key) {
    for (let one = up; one !== null; one = one.up) if (one.thing === thing) return other("[Circular]");
    if (depth > deepest) return other("[…]");
    const here = { __proto__: null, thing, up };
    const to = thing.toJSON;
    if (typeof to === "function") {
      const told = apply(to, thing, [text(key)]);
      if (told !== thing) {
        if (told === undefined || typeof told === "function" || typeof told === "symbol") return other("undefined");
        if (typeof told !== "object" || told === null) return any(told, here, depth + 1, key);
        thing = told;
      }
    }
    if (isArray(thing)) return list(thing, thing.length, here, depth);
    const kind = kindOf(thing);
    if (kind in unboxed) return any(apply(unboxed[kind], thing, []), here, depth + 1, key);
    if (kind === "TypedArray") {
      const type = apply(typeOfArray, thing, []);
      if (type !== undefined) {
        if (isShown) put(`${type}(${thing.length}) `);
        return list(thing, thing.length, here, depth);
      }
    }
    if (kind !== "Object" && !isShown) throw unfit;
    switch (kind) {
      case "Map": {
        let first = true;
        put(`Map(${thing.size}) {`);
        apply(eachOfMap, thing, [(found, name) => {
          if (!first) put(", ");
          first = false;
          any(name, here, depth + 1, "");
          put(" => ");
          any(found, here, depth + 1, "");
        }]);
        return put("}");
      }
      case "Set": {
        let first = true;
        put(`Set(${thing.size}) {`);
        apply(eachOfSet, thing, [found => {
          if (!first) put(", ");
          first = false;
          any(found, here, depth + 1, "");
        }]);
        return put("}");
      }
      case "RegExp": return put(text(apply(pattern, thing, [])));
      case "Error": return put(failure(thing).traceback);
      case "Object": {
        const name = isShown ? className(thing) : "";
        if (name) put(`${name} `);
        return fields(thing, here, depth);
      }
      default: return put(`[${className(thing) || kind}]`);
    }
  }

  function any(thing, up, depth, key) {
    switch (typeof thing) {
      case "string":
        if (!isShown && !apply(isWellFormed, thing, [])) throw unfit;
        if (thing.length > room) throw full;
        return put(stringify(thing));
      case "number":
        return isFinite(thing) ? put(`${thing}`) : other(`${thing}`);
      case "boolean":
        return put(thing ? "true" : "false");
      case "bigint": {
        const digits = `${thing}`;
        if (isShown) return put(`${digits}n`);
        if (digits.length > mostDigits) throw unfit;
        return put(digits);
      }
      case "undefined": return other("undefined");
      case "symbol": return other(text(thing));
      case "function": {
        let name = "";
        try { name = text(thing.name); } catch {}
        return other(name ? `[Function ${name}]` : "[Function]");
      }
    }
    if (thing === null) return put("null");
    if (!isShown) return object(thing, up, depth, key);
    const before = count, left = room;
    try { object(thing, up, depth, key); } catch (problem) {
      if (problem === full) throw problem;
      // What it is cannot be told; what was told of it is taken back.
      count = pieces.length = before;
      room = left;
      put(`[threw ${failure(problem).type}]`);
    }
  }

  try {
    any(value, null, 0, "");
  } catch (problem) {
    if (problem !== full || !isShown) throw problem;
    pieces[count++] = "…";
  }
  return apply(join, pieces, [""]);
}

// Whether what JSON makes of a value is all that there is of it, by a quick look.
function isPlain(thing, depth, left) {
  if (depth > deepest || typeof thing.toJSON === "function") return false;
  const list = isArray(thing);
  if (!list && kindOf(thing) !== "Object") return false;
  const names = list ? thing : keys(thing), size = names.length;
  if ((left.count -= size) < 0) return false;
  for (let at = 0; at < size; at++) {
    const found = list ? thing[at] : thing[names[at]];
    switch (typeof found) {
      case "number": if (found - found !== 0) return false; break;
      case "object": if (found !== null && !isPlain(found, depth + 1, left)) return false; break;
      case "string": case "boolean": case "undefined": break;
      default: return false;
    }
  }
  return true;
}

function asJson(value, most) {
  try {
    if (typeof value === "object" && value !== null && isPlain(value, 0, { __proto__: null, count: most })) {
      const json = stringify(value);
      // As halves of pairs are written, and perhaps something else.
      if (apply(indexOf, json, ["\\ud"]) < 0) return json;
    }
  } catch {}
  return write(value, most, false);
}

// A value in words.
function show(thing, room) {
  try {
    switch (typeof thing) {
      case "string": return thing;
      case "function": return apply(sourceOf, thing, []);
      default: return write(thing, room, true);
    }
  } catch { return typeof thing; }
}
const { toString: sourceOf } = Function.prototype;

// A value as JSON, and whether it is shown as text because JSON does not know it.
function told(value, most) {
  if (value === undefined) return nothing;
  try {
    const json = asJson(value, most);
    if (json.length <= most) return { __proto__: null, json, shown: false };
  } catch {}
  return { __proto__: null, json: stringify(cut(show(value, most), most >> 3)), shown: true };
}

function read(thing, key) {
  try {
    const found = thing[key];
    return typeof found === "string" ? found : undefined;
  } catch { return undefined; }
}

function isOf(kind, thing) {
  try { return typeof thing === "object" && thing !== null && kindOf(thing) === kind; } catch { return false; }
}

function isError(thing) { return isOf("Error", thing); }

// The lines of a stack that are the code's, and the names of the functions that they are in.
function linesOf(stack, name) {
  const lines = [];
  for (let at = 0, end; at < stack.length && lines.length < mostLines; at = end + 1) {
    end = apply(indexOf, stack, ["\n", at]);
    if (end < 0) end = stack.length;
    let line = apply(slice, stack, [at, end]);
    if (apply(indexOf, line, [driver]) >= 0 || apply(indexOf, line, [":"]) < 0 || !apply(startsWith, line, ["    at "])) continue;
    for (let from; (from = apply(indexOf, line, [evaluated])) >= 0;) {
      line = apply(slice, line, [0, from]) + name + apply(slice, line, [from + evaluated.length]);
    }
    defineProperty(lines, lines.length, { __proto__: null, value: line, writable: true, enumerable: true, configurable: true });
  }
  return lines;
}

function lineOf(told) {
  let end = told.length - (told[told.length - 1] === ")" ? 1 : 0), last = null;
  for (let step = 0; step < 2; step++) {
    const at = apply(lastIndexOf, told, [":", end - 1]);
    const found = at < 0 ? NaN : number(apply(slice, told, [at + 1, end]));
    if (!(found >= 0 && found <= 0x7fffffff)) break;
    last = found;
    end = at;
  }
  return last;
}

function failure(problem, depth = 0) {
  const name = job.name;
  if (!isError(problem)) {
    const type = problem === null ? "null" : typeof problem, message = cut(show(problem, mostText), mostText);
    return { type, message, traceback: `${type}: ${message}\n`, line: null };
  }
  const constructors = { __proto__: null };
  try {
    for (let from = getPrototypeOf(problem), step = 0; from !== null && step < 20; from = getPrototypeOf(from), step++) {
      const made = read(from.constructor, "name");
      if (made) constructors[made] = true;
    }
  } catch {}
  let type = read(problem, "name") ?? "Error";
  if (type in native) {
    const made = className(problem);
    if (made) type = made;
  }
  const message = read(problem, "message") ?? "(its text cannot be told)", stack = read(problem, "stack") ?? "";
  let lines = linesOf(stack, name), first = 0;
  // Where an error was made is who has called what makes it.
  while (first < lines.length - 1 && madeBy(lines[first]) in constructors) first++;
  let traceback = `${type}${message ? `: ${message}` : ""}`;
  for (let at = first; at < lines.length; at++) traceback += `\n${lines[at]}`;
  traceback += "\n";
  if (depth < 3) {
    try {
      if (isError(problem.cause)) traceback += `Caused by ${failure(problem.cause, depth + 1).traceback}`;
      if (isArray(problem.errors)) {
        for (let at = 0; at < problem.errors.length && at < 10; at++) {
          traceback += `One of them: ${failure(problem.errors[at], depth + 1).traceback}`;
        }
      }
    } catch {}
  }
  return { type: cut(type, 200), message: cut(message, mostText), traceback: cut(traceback, mostText),
    line: lines.length ? lineOf(lines[first]) : null };
}

function madeBy(line) {
  const end = apply(indexOf, line, [" ("]);
  return end < 0 ? "" : apply(slice, line, [7, end]);
}

function errorAsJson(error) {
  if (error === null) return "null";
  return `{"type":${stringify(error.type)},"message":${stringify(error.message)},` +
    `"traceback":${stringify(error.traceback)},"line":${error.line === null ? "null" : error.line}}`;
}

function frame(value, error, exit) {
  return `{"value":${value.json},"shown":${value.shown},"error":${errorAsJson(error)},"exit":${exit}}`;
}

// What is thrown where nobody catches it: by timers and microtasks.
let uncaught = null;

function guarded(callback, args) {
  try { return apply(callback, undefined, args); } catch (problem) { uncaught ??= failure(problem); }
}

function formatted(things) {
  let line = "", next = 0;
  if (typeof things[0] === "string") {
    const form = things[0];
    next = 1;
    let at = 0;
    for (let found; (found = apply(indexOf, form, ["%", at])) >= 0;) {
      const letter = form[found + 1];
      line += apply(slice, form, [at, found]);
      at = found + 2;
      if (letter === "%") line += "%";
      else if (next < things.length && letter !== undefined && apply(indexOf, "sdifjoOc", [letter]) >= 0) {
        const thing = things[next++];
        if (letter === "d" || letter === "i" || letter === "f") {
          const value = typeof thing === "symbol" ? NaN : number(thing);
          line += typeof thing === "bigint" ? `${thing}n` : letter === "i" ? Trunc(value) : value;
        } else if (letter !== "c") line += show(thing, mostShown);
      } else {
        line += "%";
        at = found + 1;
      }
    }
    line += apply(slice, form, [at]);
  }
  for (; next < things.length; next++) line += `${next ? " " : ""}${show(things[next], mostShown)}`;
  return line;
}
const { trunc: Trunc } = Math, mostShown = 16 << 20;

// The console; what writes a line to stdout, and what writes one to stderr, is the host's.
function makeConsole(out, err) {
  let indent = "";
  const counts = { __proto__: null }, times = { __proto__: null }, now = Date.now;
  const writer = put => (...things) => {
    const line = formatted(things);
    put(indent ? indent + apply(replaceAll, line, ["\n", `\n${indent}`]) : line);
  };
  const { replaceAll } = String.prototype, log = writer(out), error = writer(err);
  const made = {
    log, info: log, debug: log, dir: thing => log(thing), table: thing => log(thing), warn: error, error,
    trace: error,
    assert(holds, ...things) {
      if (!holds) error(`Assertion failed${things.length ? `: ${formatted(things)}` : ""}`);
    },
    group(...things) { if (things.length) apply(log, undefined, things); indent += "  "; },
    groupEnd() { indent = apply(slice, indent, [2]); },
    count(label = "default") { counts[label] = (counts[label] ?? 0) + 1; log(`${label}: ${counts[label]}`); },
    countReset(label = "default") { counts[label] = 0; },
    time(label = "default") { times[label] = now(); },
    timeLog(label = "default") { log(`${label}: ${now() - times[label]} ms`); },
    timeEnd(label = "default") { log(`${label}: ${now() - times[label]} ms`); delete times[label]; },
  };
  made.groupCollapsed = made.group;
  return made;
}

// Tools, called by what exchanges a request for an answer, both JSON.
function makeTools(described, exchange) {
  const tools = {};
  for (const { name, signature, doc, positional } of described) {
    const tool = { [name](...args) {
      let size = args.length, named = "{}";
      while (size && args[size - 1] === undefined) size--;
      const at = positional === undefined ? size : number(positional);
      const request = [];
      for (let index = 0; index < size; index++) {
        let json;
        try { json = asJson(args[index], 1 << 24); } catch (problem) {
          if (problem === full) throw new TypeProblem(`what ${name} is given is too long`);
          throw new TypeProblem(`argument ${index + 1} of ${name} is not JSON: ${cut(show(args[index], 200), 200)}`);
        }
        if (index === at) named = json; else request[request.length] = json;
      }
      const list = apply(join, request, [","]);
      const answer = parse(exchange(`{"name":${stringify(name)},"args":[${list}],"named":${named}}`));
      if (answer.error === undefined) return answer.value;
      const problem = answer.error === "TypeError" ? new TypeProblem(answer.message) : new Problem(answer.message);
      defineProperty(problem, "name", { __proto__: null, value: answer.error, writable: true, configurable: true });
      throw problem;
    } }[name];
    defineProperty(tool, "description", { value: `${name}${signature}${doc ? `\n\n${doc}` : ""}` });
    tools[name] = tool;
  }
  return tools;
}

// Makes `fetch`: messages of one line of JSON and a body, which the host answers likewise.
function makeFetch(exchange) {
  const bytesOf = Uint8Array, buffer = ArrayBuffer, isView = ArrayBuffer.isView, promise = Promise;
  const { toLowerCase, replace } = String.prototype, fromCode = String.fromCharCode;
  const lowered = name => apply(toLowerCase, `${name}`, []);

  function ask(said, body = "") {
    const answer = exchange(`\u0001${stringify(said)}\n${body}`), end = apply(indexOf, answer, ["\n"]);
    const head = parse(apply(slice, answer, [0, end]));
    if (head.error !== undefined) throw new TypeProblem(`fetch failed: ${head.error}`);
    return [head, apply(slice, answer, [end + 1])];
  }

  // All that is left of a body; each character is a byte, unless it is a text.
  function rest(response, form) {
    const pieces = [];
    for (;;) {
      const [head, data] = ask({ do: "read", response, form });
      pieces[pieces.length] = data;
      if (head.end) break;
    }
    ask({ do: "close", response });
    return apply(join, pieces, [""]);
  }

  class Headers {
    #all = new Map();
    constructor(given = []) {
      if (given instanceof Headers || isArray(given)) for (const [name, value] of given) this.append(name, value);
      else for (const name of keys(given)) this.append(name, given[name]);
    }
    append(name, value) {
      const key = lowered(name), before = this.#all.get(key);
      this.#all.set(key, before === undefined ? `${value}` : `${before}, ${value}`);
    }
    set(name, value) { this.#all.set(lowered(name), `${value}`); }
    get(name) { return this.#all.get(lowered(name)) ?? null; }
    has(name) { return this.#all.has(lowered(name)); }
    delete(name) { this.#all.delete(lowered(name)); }
    forEach(callback) { for (const [name, value] of this.#all) callback(value, name, this); }
    entries() { return this.#all.entries(); }
    keys() { return this.#all.keys(); }
    values() { return this.#all.values(); }
    [Symbol.iterator]() { return this.#all.entries(); }
  }

  class Response {
    #number;
    #used = false;
    constructor(head, asked) {
      this.#number = head.response;
      this.status = head.status;
      this.statusText = head.reason;
      this.ok = head.status >= 200 && head.status < 300;
      this.url = head.url;
      this.redirected = head.url !== asked;
      this.headers = new Headers(head.headers);
      this.type = "basic";
    }
    get bodyUsed() { return this.#used; }
    #take(form) {
      if (this.#used) throw new TypeProblem("the body was read before");
      this.#used = true;
      return rest(this.#number, form);
    }
    async text() { return this.#take("text"); }
    async json() { return parse(this.#take("text")); }
    async bytes() {
      const characters = this.#take("characters"), found = new bytesOf(characters.length);
      for (let at = 0; at < characters.length; at++) found[at] = apply(charCodeAt, characters, [at]);
      return found;
    }
    async arrayBuffer() { return (await this.bytes()).buffer; }
  }

  // What is sent: a text, or a character for each byte.
  function bodyOf(body) {
    const isBytes = body instanceof buffer || isView(body);
    if (!isBytes) return [`${body}`, "bytes"];
    const bytes = isView(body) ? new bytesOf(body.buffer, body.byteOffset, body.byteLength) : new bytesOf(body);
    const pieces = [];
    for (let at = 0; at < bytes.length; at += 4096) {
      pieces[pieces.length] = apply(fromCode, null, bytes.subarray(at, at + 4096));
    }
    return [apply(join, pieces, [""]), "characters"];
  }

  function fetch(asked, { method = "GET", headers = {}, body = null, redirect = "follow" } = {}) {
    return new promise(done => {
      const url = `${asked}`, given = new Headers(headers);
      const [data, form] = body === null || body === undefined ? ["", "bytes"] : bodyOf(body);
      if (data && form === "bytes" && !given.has("content-type")) given.set("content-type", "text/plain;charset=UTF-8");
      const known = apply(replace, `${method}`, [/^(get|head|post|put|delete|options)$/i, found => found.toUpperCase()]);
      const said = { do: "send", method: known, url, headers: [...given], follow: redirect === "follow", form };
      const [head] = ask(said, data);
      if (redirect === "error" && head.status >= 300 && head.status < 400) throw new TypeProblem("fetch failed: it is a redirect");
      done(new Response(head, url));
    });
  }
  return { fetch, Headers, Response };
}

function defineNetwork(exchange) {
  const made = makeFetch(exchange);
  define("fetch", made.fetch);
  define("Headers", made.Headers);
  define("Response", made.Response);
}

function define(name, value) {
  defineProperty(globalThis, name, { __proto__: null, value, writable: true, enumerable: true, configurable: true });
}
