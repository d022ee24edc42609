import { describeExecutors } from "./contract.ts";
import { startInProcess } from "./support.ts";

describeExecutors("executors in process", startInProcess);
