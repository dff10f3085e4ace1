//! The pool of reassembly buffers: who may use one, and what it holds.

use observer_proto::{
    flow::BufferHandle,
    reassembly::{BUFFERS, BufferPool, LEASE_NS, MAX_SEGMENT, WINDOW_BYTES},
};

#[test]
fn a_buffer_has_one_user_until_it_is_freed() {
    let mut pool = BufferPool::default();
    let handles: Vec<_> = (0..BUFFERS).map(|_| pool.alloc(1)).collect();
    assert!(handles.iter().all(|handle| !handle.is_none()));
    assert!(pool.alloc(1).is_none(), "all are in use");
    for (at, handle) in handles.iter().enumerate() {
        assert!(pool.store(*handle, at as u32, &[at as u8; 3]));
    }
    for (at, handle) in handles.iter().enumerate() {
        assert_eq!(pool.get(*handle).unwrap().read(at as u32).unwrap()[..3], [at as u8; 3]);
        pool.free(*handle);
        assert!(pool.get(*handle).is_none());
    }
    assert!(pool.is_empty());
    let again = pool.alloc(1);
    assert!(!again.is_none() && !handles.contains(&again));
}

#[test]
fn a_buffer_whose_lease_is_over_can_be_allocated_again() {
    let mut pool = BufferPool::default();
    let handles: Vec<_> = (0..BUFFERS).map(|_| pool.alloc(7)).collect();
    assert!(pool.alloc(6 + LEASE_NS).is_none());
    let other = pool.alloc(7 + LEASE_NS);
    assert!(pool.get(other).is_some());
    assert!(pool.get(handles[0]).is_none() && !pool.store(handles[0], 0, &[1]));
    pool.free(handles[0]);
    assert!(pool.get(other).is_some(), "an invalid handle frees nothing");
}

#[test]
fn no_handle_is_never_valid() {
    let mut pool = BufferPool::default();
    pool.free(BufferHandle::NONE);
    assert!(pool.get(BufferHandle::NONE).is_none() && !pool.store(BufferHandle::NONE, 0, &[1]));
    pool.alloc(1);
    assert!(pool.get(BufferHandle::NONE).is_none());
}

#[test]
fn only_what_fits_is_stored() {
    let mut pool = BufferPool::default();
    let handle = pool.alloc(1);
    let segment = vec![7; MAX_SEGMENT as usize + 1];
    assert!(pool.store(handle, WINDOW_BYTES - 1, &segment[1..]));
    let buffer = pool.get(handle).unwrap();
    assert_eq!(buffer.read(WINDOW_BYTES + MAX_SEGMENT - 2).unwrap()[0], 7, "the segment's last byte");
    assert!(buffer.read(WINDOW_BYTES + MAX_SEGMENT).is_none());
    assert!(!pool.store(handle, WINDOW_BYTES, &[7]) && !pool.store(handle, 0, &segment));
}
