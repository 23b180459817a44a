// Keeps writing through node-redis until standard input ends: `node writer.mjs HOST PORT KEY`.
// Prints one JSON object: how many increments were answered, what failed, and the last value.
const [host, port, key] = process.argv.slice(2);
const { createClient } = await import("redis");
const client = createClient({ socket: { host, port: Number(port) } });
const errors = [];
client.on("error", (error) => errors.push(String(error.message)));
await client.connect();
let done = 0;
let last = 0;
let stop = false;
process.stdin.on("end", () => (stop = true)).resume();
process.stderr.write("writing\n");
while (!stop) {
  try {
    last = await client.incr(key);
    done += 1;
  } catch (error) {
    errors.push(String(error.message));
  }
  await new Promise((resolve) => setTimeout(resolve, 2));
}
await client.close();
console.log(JSON.stringify({ done, last, errors }));
