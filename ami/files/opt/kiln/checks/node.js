// node.js: does this Node run a script, with what actions need of OpenSSL? A connection to itself, by a key that both ends
// know, needs no certificate.
"use strict";
const crypto = require("crypto");
const tls = require("tls");

function wrong(what) {
  console.log(what);
  process.exit(1);
}

const digest = crypto.createHash("sha256").update("kiln").digest("hex");
if (digest !== "cdfe9ad58b46226d63eb322dacd35f4f7ac38096180c87258c142e4bca9a3cf5") {
  wrong(`the SHA-256 of "kiln" is not ${digest}`);
}
setTimeout(() => wrong("TLS took more than 20 seconds"), 20_000).unref();

const key = crypto.randomBytes(32);
const server = tls.createServer({ ciphers: "PSK", maxVersion: "TLSv1.2", pskCallback: () => key }, (socket) => {
  socket.end("works");
});
server.on("tlsClientError", (error) => wrong(`TLS: ${error.message}`));
server.listen(0, "127.0.0.1", () => {
  const client = tls.connect({
    host: "127.0.0.1",
    port: server.address().port,
    ciphers: "PSK",
    maxVersion: "TLSv1.2",
    checkServerIdentity: () => undefined,
    pskCallback: () => ({ psk: key, identity: "kiln" }),
  });
  let heard = "";
  client.on("data", (data) => (heard += data));
  client.on("error", (error) => wrong(`TLS: ${error.message}`));
  client.on("end", () => {
    if (heard !== "works") {
      wrong(`TLS brought "${heard}"`);
    }
    console.log("crypto and TLS work");
    process.exit(0);
  });
});
