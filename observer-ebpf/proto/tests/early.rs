//! The places for bytes that came early: whose they are, and what they keep.

use observer_proto::early::{HELD_NS, PLACES, Places, SEGMENT, SPAN};

#[test]
fn each_place_is_one_holders_until_it_is_given_back() {
    let mut places = Places::default();
    let tickets: Vec<u32> = (0..PLACES).map(|_| places.take(1)).collect();
    assert!(tickets.iter().all(|ticket| *ticket != 0));
    assert_eq!(places.take(1), 0, "all are taken");
    for (at, ticket) in tickets.iter().enumerate() {
        assert!(places.keep(*ticket, at as u32, &[at as u8; 3]));
    }
    for (at, ticket) in tickets.iter().enumerate() {
        assert_eq!(places.held(*ticket).unwrap().read(at as u32).unwrap()[..3], [at as u8; 3]);
        places.release(*ticket);
        assert!(places.held(*ticket).is_none());
    }
    assert!(places.is_empty());
    let again = places.take(1);
    assert!(again != 0 && !tickets.contains(&again));
}

#[test]
fn a_place_that_is_held_for_too_long_goes_to_another() {
    let mut places = Places::default();
    let tickets: Vec<u32> = (0..PLACES).map(|_| places.take(7)).collect();
    assert_eq!(places.take(6 + HELD_NS), 0);
    let other = places.take(7 + HELD_NS);
    assert!(places.held(other).is_some());
    assert!(places.held(tickets[0]).is_none() && !places.keep(tickets[0], 0, &[1]));
    places.release(tickets[0]);
    assert!(places.held(other).is_some(), "an old ticket gives nothing back");
}

#[test]
fn no_ticket_is_for_no_place() {
    let mut places = Places::default();
    places.release(0);
    assert!(places.held(0).is_none() && !places.keep(0, 0, &[1]));
    places.take(1);
    assert!(places.held(0).is_none());
}

#[test]
fn only_what_fits_is_kept() {
    let mut places = Places::default();
    let ticket = places.take(1);
    let segment = vec![7; SEGMENT as usize + 1];
    assert!(places.keep(ticket, SPAN - 1, &segment[1..]));
    let place = places.held(ticket).unwrap();
    assert_eq!(place.read(SPAN + SEGMENT - 2).unwrap()[0], 7, "the segment's last byte");
    assert!(place.read(SPAN + SEGMENT).is_none());
    assert!(!places.keep(ticket, SPAN, &[7]) && !places.keep(ticket, 0, &segment));
}
