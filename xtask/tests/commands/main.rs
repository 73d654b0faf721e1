//! The commands, as the shipped executable, in worlds of their own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bad_input;
mod bake;
mod bench;
mod book;
mod boot;
mod cli;
mod contents;
mod deploy;
mod destroy;
mod doctor;
mod failures;
mod init;
mod input;
mod install;
mod interrupt;
mod kill;
mod map;
mod models;
mod permissions;
mod pin;
mod pipelines;
mod prune;
mod register;
mod rotation;
mod secrets;
mod status;
mod support;
mod threats;
mod voice;
