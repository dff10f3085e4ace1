//! The eBPF programs. Every one lets everything pass.

/// Logs a line through the observer, in development builds (`cargo xtask build --kernel-log`) only.
macro_rules! debug {
    ($ctx:expr, $($argument:tt)+) => {
        #[cfg(feature = "kernel-log")]
        aya_log_ebpf::debug!($ctx, $($argument)+);
    };
}

mod attribution;
mod bpf_loop;
mod context;
mod env;
mod handshake;
mod lock;
mod maps;
mod packet;
mod pairing;
mod preexisting;
mod reassembly;
mod record;
mod tail_call;

/// The hooks, in the order in which a connection meets them.
mod hooks {
    mod connect;
    mod first_data;
    mod http1;
    mod http2;
    mod skb;
    mod sock_ops;
    mod sockopt;
}
