export { type FileSystem, nodeFileSystem } from "../files/file-system.ts";
