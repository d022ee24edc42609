/** Kinds of settings: how the text of an environment variable becomes a checked value. */
import * as z from "zod";

/** One environment variable: its name, what it accepts, and what stands in its place when it is unset or empty. */
export interface Setting<T> {
  readonly name: string;
  /** What it must be, as the end of "SERVER_PORT must be …". */
  readonly expected: string;
  /** The default as one would write it, for the documentation; empty when there is none. */
  readonly defaultText: string;
  readonly doc: string;
  /** A secret's value is never shown. */
  readonly secret: boolean;
  readonly type: z.ZodType<T, string>;
}

interface Range {
  readonly min: number;
  readonly max: number;
}

const KIB = 1024;
const byteUnits: Readonly<Record<string, number>> = { "": 1, KiB: KIB, MiB: KIB ** 2, GiB: KIB ** 3, TiB: KIB ** 4 };

/** A text of at least one character. */
export function text(name: string, defaultText: string, doc: string): Setting<string> {
  return { name, expected: "a text", defaultText, doc, secret: false, type: withDefault(z.string(), defaultText) };
}

/** A host name or an address; an IPv6 address may stand in brackets, as in URLs. */
export function host(name: string, defaultText: string, doc: string): Setting<string> {
  const type = z
    .string()
    .regex(/^([^\s[\]/]+|\[[0-9a-fA-F:.%]+\])$/)
    .transform((value) => value.replace(/^\[|\]$/g, ""));
  return {
    name,
    expected: "a host name or an address",
    defaultText,
    doc,
    secret: false,
    type: withDefault(type, defaultText),
  };
}

/** A text that may be absent. */
export function optionalText(
  name: string,
  doc: string,
  options: { secret?: boolean } = {},
): Setting<string | undefined> {
  return {
    name,
    expected: "a text, or nothing",
    defaultText: "",
    doc,
    secret: options.secret ?? false,
    type: z.string().transform((value) => (value === "" ? undefined : value)),
  };
}

/** A URL of HTTP or HTTPS that may be absent. */
export function optionalUrl(name: string, doc: string): Setting<string | undefined> {
  const isUrl = (value: string): boolean => /^https?:$/.test(URL.parse(value)?.protocol ?? "");
  return {
    name,
    expected: "a URL of http or https, or nothing",
    defaultText: "",
    doc,
    secret: false,
    type: z
      .string()
      .refine((value) => value === "" || isUrl(value))
      .transform((value) => (value === "" ? undefined : value)),
  };
}

/** Name of a bucket: nothing that would become part of a path or a query. */
export function bucket(name: string, defaultText: string, doc: string): Setting<string> {
  return {
    name,
    expected: "a bucket's name: letters, digits, dots, hyphens and underscores, 3 to 255 of them",
    defaultText,
    doc,
    secret: false,
    type: withDefault(z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{2,254}$/), defaultText),
  };
}

/** One of the given words. */
export function choice<const T extends string>(
  name: string,
  defaultValue: T,
  words: readonly T[],
  doc: string,
): Setting<T> {
  return {
    name,
    expected: `one of ${words.join(", ")}`,
    defaultText: defaultValue,
    doc,
    secret: false,
    type: withDefault(z.string().toLowerCase().pipe(z.enum(words)), defaultValue),
  };
}

/** true or false. */
export function flag(name: string, defaultValue: boolean, doc: string): Setting<boolean> {
  return {
    name,
    expected: "true or false",
    defaultText: String(defaultValue),
    doc,
    secret: false,
    type: withDefault(
      z
        .string()
        .toLowerCase()
        .pipe(z.enum(["true", "false", "1", "0"]))
        .transform((value) => value === "true" || value === "1"),
      String(defaultValue),
    ),
  };
}

/** A whole number. */
export function count(name: string, defaultValue: number, range: Range, doc: string): Setting<number> {
  return {
    name,
    expected: `a whole number from ${range.min} to ${range.max}`,
    defaultText: String(defaultValue),
    doc,
    secret: false,
    type: withDefault(
      z
        .string()
        .regex(/^\d{1,15}$/)
        .transform(Number)
        .pipe(z.number().min(range.min).max(range.max)),
      String(defaultValue),
    ),
  };
}

/** Seconds in the environment, fractions allowed; milliseconds in the program. The range is in seconds. */
export function seconds(name: string, defaultSeconds: number, range: Range, doc: string): Setting<number> {
  return {
    name,
    expected: `a number of seconds from ${range.min} to ${range.max}`,
    defaultText: String(defaultSeconds),
    doc,
    secret: false,
    type: withDefault(
      z
        .string()
        .regex(/^\d{1,9}(\.\d{1,6})?$/)
        .transform(Number)
        .pipe(z.number().min(range.min).max(range.max))
        .transform((value) => Math.round(value * 1000)),
      String(defaultSeconds),
    ),
  };
}

/** Bytes: a whole number, or one followed by KiB, MiB, GiB or TiB. */
export function bytes(
  name: string,
  defaultText: string,
  range: { min: string; max: string },
  doc: string,
): Setting<number> {
  return {
    name,
    expected: `a number of bytes from ${range.min} to ${range.max} (such as 65536, 64KiB or 4MiB)`,
    defaultText,
    doc,
    secret: false,
    type: withDefault(
      z
        .string()
        .regex(/^\d{1,15} ?([KMGT]iB)?$/)
        .transform(bytesOf)
        .pipe(z.number().min(bytesOf(range.min)).max(bytesOf(range.max))),
      defaultText,
    ),
  };
}

/** Texts separated by commas; none when empty. */
export function list(name: string, doc: string): Setting<readonly string[]> {
  return {
    name,
    expected: "a list separated by commas",
    defaultText: "",
    doc,
    secret: false,
    type: z.string().transform((value) =>
      value
        .split(",")
        .map((item) => item.trim())
        .filter((item) => item !== ""),
    ),
  };
}

function bytesOf(value: string): number {
  const [, digits = "", unit = ""] = /^(\d+) ?([KMGT]iB)?$/.exec(value) ?? [];
  return Number(digits) * (byteUnits[unit] ?? 1);
}

function withDefault<T>(type: z.ZodType<T, string>, defaultText: string): z.ZodType<T, string> {
  return z
    .string()
    .transform((value) => (value === "" ? defaultText : value))
    .pipe(type);
}
