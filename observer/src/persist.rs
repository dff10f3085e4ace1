//! State that outlives the process with `--pin`: the directory on bpffs, the pinned maps' layout, and the persisted state.

pub mod abi;
pub mod btf;
pub(crate) mod carried_entries;
pub mod carry_over;
pub mod field_offsets;
pub mod inspect;
pub mod pin_dir;
pub mod pins;
pub mod state;
pub mod state_map;
