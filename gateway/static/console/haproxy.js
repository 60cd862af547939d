// HAProxy's statistics: comma separated, one row per server.  (pure)

/** Rows of `text` by column name. */
export function parse(text) {
  const [head, ...lines] = text.replace(/^# /, "").split("\n").filter((line) => line.trim());
  const names = cells(head);
  return lines.map((line) => Object.fromEntries(cells(line).map((value, at) => [names[at], value])));
}

// The address in haproxy.cfg of a server that no node has: an address for documentation (RFC 5737).
const UNUSED = "192.0.2.1:";

/** The nodes' servers in `rows`, without the empty slots. */
export function servers(rows) {
  const number = (value) => Number(value) || 0;
  return rows
    .filter(({ pxname, svname }) => pxname === "gw" && svname !== "BACKEND" && svname !== "FRONTEND")
    .filter(({ status, addr }) => !status.startsWith("MAINT (resolution)") && !addr?.startsWith(UNUSED))
    .map((row) => ({
      name: row.svname,
      address: row.addr ?? "",
      status: row.status.toLowerCase(),
      level: /^UP$|^no check/.test(row.status) ? "good" : row.status.startsWith("DOWN") ? "bad" : "warn",
      check: [row.check_status, row.check_code, row.check_duration && `${row.check_duration} ms`].filter(Boolean).join(" · "),
      current: number(row.scur),
      most: number(row.smax),
      total: number(row.stot),
      errors: number(row.econ) + number(row.eresp),
      retries: number(row.wretr) + number(row.wredis),
      seconds: number(row.lastchg),
    }));
}

/** The cells of one line; a quoted cell may contain commas. */
function cells(line) {
  return [...line.matchAll(/("(?:[^"]|"")*"|[^,]*)(?:,|$)/g)].map(([, cell]) =>
    cell.startsWith('"') ? cell.slice(1, -1).replaceAll('""', '"') : cell,
  );
}
