// testcontainers for Node starts nginx and PostgreSQL; the engine is that of DOCKER_HOST.
import assert from "node:assert";
import { text } from "node:stream/consumers";
import { GenericContainer, Network, Wait } from "testcontainers";

const nginx = await new GenericContainer("nginx").withExposedPorts(80).withWaitStrategy(Wait.forHttp("/", 80)).start();
const at = `http://${nginx.getHost()}:${nginx.getMappedPort(80)}`;
assert.equal(await (await fetch(at)).text(), "Welcome to nginx!\n");
const run = await nginx.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]);
assert.deepEqual([run.exitCode, run.stdout, run.stderr], [3, "out\n", "err\n"]);
await nginx.copyContentToContainer([{ content: "hello", target: "/var/www/html/greeting" }]);
assert.equal(await (await fetch(`${at}/greeting`)).text(), "hello");
const archive = await nginx.copyArchiveFromContainer("/var/www/html/greeting");
assert.match(await text(archive), /hello/);
await nginx.restart();
assert.equal(await (await fetch(`http://${nginx.getHost()}:${nginx.getMappedPort(80)}/greeting`)).text(), "hello");
await nginx.stop();
console.log("nginx: ok");

const network = await new Network().start();
const postgres = await new GenericContainer("postgres:15")
  .withNetwork(network)
  .withNetworkAliases("database")
  .withExposedPorts(5432)
  .withEnvironment({ POSTGRES_PASSWORD: "p", POSTGRES_USER: "u", POSTGRES_DB: "app" })
  .withHealthCheck({ test: ["CMD-SHELL", "pg_isready -h 127.0.0.1 -U u -d app"], interval: 250, timeout: 2000, retries: 60 })
  .withWaitStrategy(Wait.forAll([Wait.forLogMessage(/database system is ready to accept connections/, 2), Wait.forHealthCheck()]))
  .start();
const query = await postgres.exec(["psql", "-h", "database", "-U", "u", "-d", "app", "-tAc", "select 40+2"], { env: { PGPASSWORD: "p" } });
assert.deepEqual([query.exitCode, query.stdout], [0, "42\n"], query.output);
await postgres.stop();
await network.stop();
console.log("postgres: ok");
