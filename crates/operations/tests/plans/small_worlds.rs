//! The planners over every state of a small world that a few actions lead to, runs that are killed after any step among them.

mod fleet;
mod keys;
