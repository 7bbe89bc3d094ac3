//! Every decoder of untrusted bytes; tests and the target in `fuzz/` both call this. Panics only when a decoder breaks its
//! contract.

use medinet_secagg::{
    Advertisement, Agreement, AgreementList, KeyList, KeyShares, MaskedInput, Message, RingVector,
    ShareDelivery, Survivors, Unmasking, Width,
};

fn one<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert_eq!(
            M::decode(&message.encode()).as_ref(),
            Ok(&message),
            "what was read can be written and read again"
        );
    }
}

pub(crate) fn all(bytes: &[u8]) {
    one::<Advertisement>(bytes);
    one::<KeyList>(bytes);
    one::<KeyShares>(bytes);
    one::<ShareDelivery>(bytes);
    one::<Survivors>(bytes);
    one::<Agreement>(bytes);
    one::<AgreementList>(bytes);
    one::<Unmasking>(bytes);
    let payload = MaskedInput::decode(bytes).map_or(bytes, |input| input.payload);
    for (bits, len) in [(1, 9), (7, 100), (12, 2050), (16, 33), (20, 2048), (32, 5)] {
        if let Ok(width) = Width::new(bits) {
            let mut sum = RingVector::zeros(width, len);
            if sum.add_packed(payload) {
                let mut packed = Vec::new();
                sum.pack_into(&mut packed);
                assert_eq!(packed, payload, "packing is canonical");
            }
        }
    }
}
