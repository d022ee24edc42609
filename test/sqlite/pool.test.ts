import { describeExecutors } from "./contract.ts";
import { startProcesses } from "./support.ts";

describeExecutors("a pool of executor processes", startProcesses);
