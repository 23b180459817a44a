// What a program does every day through an npm client, with the client's defaults: `node everyday.mjs redis|ioredis PORT`.
// Prints one JSON object with what came back; tests/e2e/test_clients.py compares it.
import { Buffer } from "node:buffer";

const [name, port] = process.argv.slice(2);
const binary = Buffer.from([0, 255, 13, 10, 128]);
const seen = {};

async function nodeRedis() {
  const { createClient, RESP_TYPES } = await import("redis");
  const client = createClient({ socket: { host: "127.0.0.1", port: Number(port) } });
  client.on("error", (error) => fail(error));
  await client.connect();
  seen.ping = await client.ping();
  seen.set = await client.set("js:text", "grün");
  seen.get = await client.get("js:text");
  seen.missing = await client.get("js:none");
  await client.set("js:binary", binary);
  const raw = client.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer });
  seen.binary = Buffer.compare(await raw.get("js:binary"), binary);
  seen.counts = await Promise.all(Array.from({ length: 100 }, () => client.incr("js:counter")));
  await client.mSet({ "js:a": "1", "js:b": "2" });
  seen.many = await client.mGet(["js:a", "js:b", "js:none"]);
  await client.set("js:short", "x", { expiration: { type: "EX", value: 1000 } });
  seen.ttl = (await client.ttl("js:short")) > 990;
  seen.multi = await client.multi().set("js:m", "1").incr("js:m").get("js:m").exec();
  seen.error = await client.incr("js:text").catch((error) => error.message);
  await client.hSet("js:hash", { f: "1", g: "2" });
  seen.hash = { ...(await client.hGetAll("js:hash")) };
  await client.rPush("js:list", ["a", "b", "c"]);
  seen.list = await client.lRange("js:list", 0, -1);
  let scanned = 0;
  for await (const keys of client.scanIterator({ MATCH: "js:*" })) scanned += keys.length;
  seen.scanned = scanned;
  seen.deleted = await client.del(["js:a", "js:b"]);
  await client.close();
}

async function ioRedis() {
  const { Redis } = await import("ioredis");
  const client = new Redis(Number(port), "127.0.0.1");
  client.on("error", (error) => fail(error));
  seen.ping = await client.ping();
  seen.set = await client.set("js:text", "grün");
  seen.get = await client.get("js:text");
  seen.missing = await client.get("js:none");
  await client.set("js:binary", binary);
  seen.binary = Buffer.compare(await client.getBuffer("js:binary"), binary);
  seen.counts = await Promise.all(Array.from({ length: 100 }, () => client.incr("js:counter")));
  await client.mset("js:a", "1", "js:b", "2");
  seen.many = await client.mget("js:a", "js:b", "js:none");
  await client.set("js:short", "x", "EX", 1000);
  seen.ttl = (await client.ttl("js:short")) > 990;
  const answers = await client.multi().set("js:m", "1").incr("js:m").get("js:m").exec();
  seen.multi = answers.map(([error, value]) => error ?? value);
  seen.error = await client.incr("js:text").catch((error) => error.message);
  await client.hset("js:hash", { f: "1", g: "2" });
  seen.hash = await client.hgetall("js:hash");
  await client.rpush("js:list", "a", "b", "c");
  seen.list = await client.lrange("js:list", 0, -1);
  let scanned = 0;
  for await (const keys of client.scanStream({ match: "js:*" })) scanned += keys.length;
  seen.scanned = scanned;
  seen.deleted = await client.del("js:a", "js:b");
  await client.quit();
}

function fail(error) {
  console.error(String(error?.stack ?? error));
  process.exit(1);
}

setTimeout(() => fail(new Error("no end after 30 s")), 30000).unref();
await (name === "redis" ? nodeRedis() : ioRedis()).catch(fail);
console.log(JSON.stringify(seen));
