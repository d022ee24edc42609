/* A process that must not outlive the one that started it. */
#ifndef PERSISTO_PARENT_H
#define PERSISTO_PARENT_H

/* Ends this process as soon as `parent` is not its parent any more, whatever it is doing then. False with errno set. */
int exit_with_parent(int parent);

#endif
