//! The kernel object. On the host this is an empty program, so that the workspace builds everywhere.
//!
//! The object is offered to the kernel under GPL-2.0, see LICENSE-GPL-2.0: some kernels offer helpers such as
//! `bpf_ktime_get_ns` to such programs only.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch),
    allow(static_mut_refs, reason = "maps are statics that the loader relocates")
)]

#[cfg(target_arch = "bpf")]
mod programs;

/// An endless loop: a panic that can be reached makes the verifier refuse the program.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
