//! Scenarios on a journal in memory.
