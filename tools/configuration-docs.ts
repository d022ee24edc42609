/** docs/CONFIGURATION.md and .env.example, from the table of settings. */
import { allSettings, groupTitles } from "../src/settings/schema.ts";

type Group = keyof typeof groupTitles;

export function configurationPage(): string {
  return `${[
    "# Configuration",
    "",
    "Generated from src/settings; edit the table there, then `make generate`.",
    "",
    "Settings are environment variables; a `.env` file in the working folder is read too (see `.env.example`), and the " +
      "environment wins over it. An empty variable counts as unset. Wrong values, and names that look like a setting written " +
      "wrong, end the start with one message that lists them all.",
    "",
    "Seconds may have fractions. Bytes are whole numbers, or numbers with KiB, MiB, GiB or TiB.",
    "",
    ...groups().flatMap(([group, settings]) => [
      `## ${groupTitles[group]}`,
      "",
      "| variable | must be | default | meaning |",
      "| --- | --- | --- | --- |",
      ...settings.map(
        ({ name, expected, defaultText, doc }) =>
          `| ${name} | ${expected.replace(/ \(such as.*\)/, "")} | ${defaultText === "" ? "" : `\`${defaultText}\``} | ${doc} |`,
      ),
      "",
    ]),
    "The process itself takes two more from Node: `UV_THREADPOOL_SIZE` (the start scripts set 16), which bounds how many flushes " +
      "of write-ahead logs run at one time, and `NODE_OPTIONS`.",
  ].join("\n")}\n`;
}

export function environmentExample(): string {
  return `${[
    "# Every setting with its default. Copy to .env and change what you need; docs/CONFIGURATION.md says more.",
    ...groups().flatMap(([group, settings]) => [
      "",
      `# ${groupTitles[group]}`,
      ...settings.map(
        ({ name, defaultText }) => `#${name}=${/[ #]/.test(defaultText) ? `"${defaultText}"` : defaultText}`,
      ),
    ]),
  ].join("\n")}\n`;
}

function groups(): [Group, { name: string; expected: string; defaultText: string; doc: string }[]][] {
  return Object.entries(Object.groupBy(allSettings(), ({ group }) => group)).map(([group, rows]) => [
    group as Group,
    (rows ?? []).map(({ setting }) => setting),
  ]);
}
