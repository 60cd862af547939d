// Generates gateway.classic.js, for pages without modules, from gateway.js: the same code in a function, and one global,
// `gateway`, with all exports of the module.  node classic.mjs

import { readFileSync, writeFileSync } from "node:fs";

const at = (name) => new URL(name, import.meta.url);
const names = [];
const body = readFileSync(at("gateway.js"), "utf8").replace(/^export ((?:class|function\*?) (\w+))/gm, (_, rest, name) => {
  names.push(name);
  return rest;
});
const head = "// Generated from gateway.js by classic.mjs. <script src=\"/gateway.classic.js\"></script> defines `gateway`.\n";
writeFileSync(
  at("gateway.classic.js"),
  `${head}globalThis.gateway = (() => {\n"use strict";\n${body}\nreturn { ${names.join(", ")} };\n})();\n`,
);
