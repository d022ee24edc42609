/** GetServerInfo. */
import type { ServiceImpl } from "@connectrpc/connect";
import type { ServerService } from "../../gen/persisto/v1/server_service_pb.js";

export interface ServerFacts {
  readonly name: string;
  readonly version: string;
  readonly description: string;
  readonly contactName: string;
  readonly contactEmail: string;
  readonly sqliteVersion: string;
  readonly features: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
}

export function serverMethods(facts: ServerFacts): ServiceImpl<typeof ServerService> {
  const { limits, features, ...texts } = facts;
  const limitEntries = Object.entries(limits).map(([name, value]) => [name, BigInt(Math.trunc(value))] as const);
  return {
    getServerInfo: () => ({ ...texts, features: [...features], limits: Object.fromEntries(limitEntries) }),
  };
}
