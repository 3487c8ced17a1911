// Fetches a URL through the proxy that the environment names and prints what came of it as one JSON object.
import process from "node:process";

const url = process.argv[2];
let get = fetch;
if (Number(process.versions.node.split(".")[0]) < 24) {
  // From 24 on, NODE_USE_ENV_PROXY=1 is enough.
  const undici = await import("undici");
  const agent = new undici.EnvHttpProxyAgent({ proxyTunnel: url.startsWith("https:") });
  get = (target) => undici.fetch(target, { dispatcher: agent });
}
try {
  const response = await get(url);
  const headers = Object.fromEntries(response.headers);
  console.log(JSON.stringify({ status: response.status, headers, body: await response.text() }));
} catch (error) {
  const said = [];
  for (let cause = error; cause; cause = cause.cause) said.push(String(cause.message));
  console.log(JSON.stringify({ error: error.name, message: said.join(": ") }));
  process.exitCode = 1;
}
