/** Numbers of sealed batches, and the names that follow from them. */

/** The range of batches that a file holds. */
export interface TxidRange {
  /** At least 1; a file that begins at 1 is a snapshot. */
  readonly minTxid: bigint;
  readonly maxTxid: bigint;
}

const txidMax = (1n << 64n) - 1n;
const namePattern = /^([0-9a-f]{16})-([0-9a-f]{16})\.ltx$/;

/** Sixteen lower-case hexadecimal digits. */
export function txidText(txid: bigint): string {
  if (txid < 0n || txid > txidMax) throw new RangeError(`${txid} is no TXID`);
  return txid.toString(16).padStart(16, "0");
}

/** `<min>-<max>.ltx`, the last part of every path and key. */
export function ltxFileName({ minTxid, maxTxid }: TxidRange): string {
  return `${txidText(minTxid)}-${txidText(maxTxid)}.ltx`;
}

/** Undefined for every other name, upper-case digits and empty ranges among them. */
export function parseLtxFileName(name: string): TxidRange | undefined {
  const [, min, max] = namePattern.exec(name) ?? [];
  if (min === undefined || max === undefined) return undefined;
  const range = { minTxid: BigInt(`0x${min}`), maxTxid: BigInt(`0x${max}`) };
  return range.minTxid >= 1n && range.minTxid <= range.maxTxid ? range : undefined;
}

export const isSnapshot = ({ minTxid }: TxidRange): boolean => minTxid === 1n;
