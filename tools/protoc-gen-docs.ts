#!/usr/bin/env node
/** A protoc plugin that writes API.md and ERRORS.md from the contracts and the table of failures. */
import {
  type DescEnum,
  type DescField,
  type DescMessage,
  type DescMethod,
  type DescService,
  ScalarType,
} from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { createEcmaScriptPlugin, getComments, runNodeJs, type Schema } from "@bufbuild/protoplugin";
import { type Retry, reasons } from "../src/failure/reasons.ts";

const PACKAGE = "persisto.v1";

runNodeJs(
  createEcmaScriptPlugin({
    name: "protoc-gen-docs",
    version: "1.0.0",
    generateTs(schema) {
      write(schema, "API.md", apiPage(schema));
      write(schema, "ERRORS.md", errorsPage(schema));
    },
  }),
);

function write(schema: Schema, name: string, lines: readonly string[]): void {
  const file = schema.generateFile(name);
  for (const line of lines) file.print(line);
}

function apiPage(schema: Schema): string[] {
  const files = schema.files.filter((file) => file.proto.package === PACKAGE);
  const services = files
    .flatMap((file) => file.services)
    .toSorted((a, b) => b.methods.length - a.methods.length || a.name.localeCompare(b.name));
  const types = files.flatMap((file) => [...schema.typesInFile(file)]);
  const messages = types.filter((type) => type.kind === "message");
  const enums = types.filter((type) => type.kind === "enum" && type.name !== "ErrorReason");
  return [
    "# API",
    "",
    `Generated from proto/persisto/v1; edit the contracts, then \`make generate\`. Package \`${PACKAGE}\`.`,
    "",
    "Every method is served on one port by gRPC, gRPC-Web and Connect at `/persisto.v1.SERVICE/METHOD`. " +
      "Methods marked *no side effects* may be repeated freely, and Connect serves the unary ones by HTTP GET too. " +
      "Methods that this version does not serve answer UNIMPLEMENTED with the reason NOT_IMPLEMENTED. " +
      "What can fail is listed in [ERRORS.md](ERRORS.md); what SQL may do in [SQL.md](SQL.md).",
    "",
    ...services.flatMap(serviceSection),
    "## Messages",
    "",
    ...messages.flatMap((message) => messageSection(message as DescMessage)),
    "## Enums",
    "",
    ...enums.flatMap((type) => enumSection(type as DescEnum)),
  ];
}

function serviceSection(service: DescService): string[] {
  return [
    `## ${service.name}`,
    "",
    commentOf(service),
    "",
    "| method | request | response | repeatable | what it does |",
    "| --- | --- | --- | --- | --- |",
    ...service.methods.map(
      (method) =>
        `| ${method.name} | ${streamed(method, "request")} | ${streamed(method, "response")} | ${repeatable(method)} | ${cell(method)} |`,
    ),
    "",
  ];
}

function streamed(method: DescMethod, side: "request" | "response"): string {
  const message = side === "request" ? method.input : method.output;
  const stream =
    side === "request" ? method.methodKind === "client_streaming" : method.methodKind === "server_streaming";
  return `${stream || method.methodKind === "bidi_streaming" ? "stream of " : ""}${linkTo(message)}`;
}

function repeatable(method: DescMethod): string {
  switch (method.idempotency) {
    case MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS:
      return "no side effects";
    case MethodOptions_IdempotencyLevel.IDEMPOTENT:
      return "yes";
    default:
      return method.input.fields.some((field) => field.name === "request_id") ? "with request_id" : "no";
  }
}

function messageSection(message: DescMessage): string[] {
  const rows = message.fields.map(
    (field) => `| ${field.number} | ${field.name} | ${typeOf(field)} | ${oneofNote(field)}${cell(field)} |`,
  );
  return [
    `### ${message.name}`,
    "",
    commentOf(message),
    "",
    ...(rows.length === 0 ? ["No fields."] : ["| # | field | type | meaning |", "| --- | --- | --- | --- |", ...rows]),
    "",
  ];
}

function enumSection(type: DescEnum): string[] {
  return [
    `### ${type.name}`,
    "",
    commentOf(type),
    "",
    "| # | value | meaning |",
    "| --- | --- | --- |",
    ...type.values.map((value) => `| ${value.number} | ${value.name} | ${cell(value)} |`),
    "",
  ];
}

function oneofNote(field: DescField): string {
  return field.oneof === undefined ? "" : `*One of ${field.oneof.name}.* `;
}

function typeOf(field: DescField): string {
  switch (field.fieldKind) {
    case "scalar":
      return `${field.proto.proto3Optional ? "optional " : ""}${ScalarType[field.scalar]?.toLowerCase()}`;
    case "enum":
      return linkTo(field.enum);
    case "message":
      return linkTo(field.message);
    case "list":
      return `repeated ${field.listKind === "scalar" ? ScalarType[field.scalar]?.toLowerCase() : linkTo(field.listKind === "enum" ? field.enum : field.message)}`;
    case "map": {
      const value =
        field.mapKind === "scalar"
          ? ScalarType[field.scalar]?.toLowerCase()
          : linkTo(field.mapKind === "enum" ? field.enum : field.message);
      return `map of ${ScalarType[field.mapKey]?.toLowerCase()} to ${value}`;
    }
  }
}

function linkTo(type: DescMessage | DescEnum): string {
  return type.file.proto.package === PACKAGE && type.name !== "ErrorReason"
    ? `[${type.name}](#${type.name.toLowerCase()})`
    : type.typeName;
}

const retryTexts: Readonly<Record<Retry, string>> = {
  never: "Not unchanged.",
  same: "Yes, this call alone, at once or as RetryInfo says.",
  restart: "Start again one level up: read, decide, write.",
  later: "When what the message names has changed.",
};

function errorsPage(schema: Schema): string[] {
  const reasonEnum = schema.files
    .flatMap((file) => file.enums)
    .find((type) => type.typeName === `${PACKAGE}.ErrorReason`);
  if (reasonEnum === undefined) throw new Error(`${PACKAGE}.ErrorReason is not among the contracts`);
  const table = new Map(Object.entries(reasons));
  return [
    "# Errors",
    "",
    "Generated from src/failure/reasons.ts and error_reason.proto; edit those, then `make generate`.",
    "",
    `Every failure that Persisto raises is a status with \`google.rpc.ErrorInfo\`: the domain \`${PACKAGE}\`, one of the reasons ` +
      "below, and metadata. RetryInfo comes with it where waiting helps, BadRequest where fields are wrong, PreconditionFailure " +
      "where a constraint failed. A reason's status never changes; metadata keys, once sent, stay. In batches and scripts " +
      "`step` counts from 0. Errors of the transports themselves (a broken message, an unknown method) carry the status alone.",
    "",
    "| retry | what a caller may do |",
    "| --- | --- |",
    ...Object.entries(retryTexts).map(([retry, text]) => `| ${retry} | ${text} |`),
    "",
    "| reason | status | retry | message | metadata |",
    "| --- | --- | --- | --- | --- |",
    ...reasonEnum.values
      .filter((value) => value.number !== 0)
      .map((value) => {
        const name = value.name.replace(/^ERROR_REASON_/, "");
        const entry = table.get(name as keyof typeof reasons);
        if (entry === undefined) throw new Error(`${name} is in error_reason.proto and not in src/failure/reasons.ts`);
        return `| ${name} | ${entry.code} | ${entry.retry} | ${escapeText(entry.message)} | ${entry.metadata.join(", ")} |`;
      }),
    "",
    "## When each is raised",
    "",
    ...reasonEnum.values
      .filter((value) => value.number !== 0)
      .map((value) => `- **${value.name.replace(/^ERROR_REASON_/, "")}** (${value.number}). ${commentOf(value)}`),
  ];
}

function commentOf(desc: Parameters<typeof getComments>[0]): string {
  return escapeText((getComments(desc).leading ?? "").trim().replace(/\s*\n\s*/g, " "));
}

function cell(desc: Parameters<typeof getComments>[0]): string {
  return commentOf(desc).replaceAll("|", "\\|");
}

/** So that no pattern or placeholder reads as Markdown. */
function escapeText(text: string): string {
  return text.replace(/[[\]*]/g, "\\$&").replaceAll("<", "&lt;");
}
