/** A bare node:http2 server that answers the same bytes to every call: what the transport can do at most. */
import { createServer } from "node:http2";
import { serveQuestions } from "../processes.ts";
import { http2Options } from "./http2-options.ts";

const answer = Buffer.from(process.argv[2] ?? "", "base64");
const server = createServer(http2Options);
server.on("stream", (stream) => {
  stream.resume();
  stream.on("end", () => {
    stream.respond({ ":status": 200, "content-type": "application/grpc+proto" }, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.end(answer);
  });
});
server.listen(0, "127.0.0.1", () => {
  const address = server.address();
  serveQuestions({ port: typeof address === "object" ? address?.port : undefined }, () => ({}));
});
