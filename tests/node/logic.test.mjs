// The pure parts, against the table that the Python client is tested with too: tests/client_logic.json.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Backoff, batches, Heartbeat, Pace, Place, refreshMs } from "../../gateway/static/client/gateway.js";

const logic = JSON.parse(readFileSync(new URL("../client_logic.json", import.meta.url), "utf8"));

function described(event) {
  return event.type === "gap" ? `gap: ${event.reason}` : event.type;
}

for (const { name, steps } of logic.place) {
  test(name, () => {
    const place = new Place("t");
    for (const [step, given, expected] of steps) {
      if (step === "disconnected") place.disconnected();
      else if (step === "recover") assert.deepEqual(place.recover(), expected);
      else {
        const value = step === "take" ? { type: "message", initial: false, epoch: given[0], offset: given[1] } : given;
        assert.deepEqual(place[step](value).map(described), expected);
      }
    }
  });
}

test("each wait is random between zero and a bound that doubles up to the cap", () => {
  const { base_ms, cap_ms, share, waits_ms, told_ms } = logic.backoff;
  const backoff = new Backoff(base_ms, cap_ms, () => share);
  assert.deepEqual(waits_ms.map(() => backoff.ms()), waits_ms);
  assert.equal(backoff.ms(told_ms), told_ms);
  backoff.reset();
  assert.equal(backoff.ms(), waits_ms[0]);
});

for (const { name, topics, recover = {}, most, sizes } of logic.batches) {
  test(`batches: ${name}`, () => {
    const made = [...batches(topics, (topic) => recover[topic] ?? null, ...most)];
    assert.deepEqual(made.map(({ length }) => length), sizes);
    assert.deepEqual(made.flat(), topics);
  });
}

test("the client stays within the server's rate", () => {
  const pace = new Pace(logic.pace.per_second);
  assert.equal(pace.most, logic.pace.most);
  for (const [step, ...given] of logic.pace.steps) {
    if (step === "ms") assert.equal(Math.round(pace.ms(given[0], given[1])), given[2], `${given}`);
    else pace[step](...given);
  }
});

test("the connection ends after a number of pings without any message", () => {
  const heartbeat = new Heartbeat();
  for (let ping = 0; ping < logic.heartbeat.pings; ping++) assert.ok(heartbeat.ping());
  assert.ok(!heartbeat.ping());
  heartbeat.received();
  assert.ok(heartbeat.ping());
});

test("a token is replaced before its expiry; a token without an expiry is not", () => {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
  for (const [left, after] of logic.refresh) {
    const token = `${part({ alg: "HS256" })}.${part({ exp: 1_000 + left, name: "ÿ?>" })}.x`;
    assert.equal(refreshMs(token, 1_000_000), after === null ? null : after * 1_000);
  }
  for (const token of logic.no_end) assert.equal(refreshMs(token, 0), null, token);
});
