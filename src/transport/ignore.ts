/** For events and rejections that say nothing new: the comment at each use tells why. */
export function ignore(): void {
  // nothing to do
}
