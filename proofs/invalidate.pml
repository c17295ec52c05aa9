/*
 * One CPU against the MMUs: unmap, invalidate, reuse (docs/locking.md, M2 and M4 to M6), with two levels of what a TLB may hold.
 *
 * herd7 decides the one-stage form of this from Arm's own model (litmus/); this is the two-stage form, IPAS2E1 and VMALLE1
 * apart, on a machine made as bad as the architecture lets it be, and it runs wherever SPIN does.
 *
 * Modelled
 *   - One leaf entry, written once. Until a DSB has completed after the store, a walk may read the old value or the new one.
 *   - Two CPUs' TLBs, each with an entry of stage 2 (IPA to frame) and a combined one (VA to frame). A combined one may be made
 *     from a walk of memory or from the entry of stage 2. They are filled at any time and kept until invalidated.
 *   - A TLBI completes at any time after it was issued, in any order with others; the next DSB waits for it.
 *   - A DMB orders loads and stores, and neither walks nor TLBIs: it is as good as nothing here, and has no code.
 *
 * Abstracted away, and so not proved here
 *   - Which addresses an operand covers, TTL, VMID, regime, the shareability of a DSB: the modelled MMU of the library's tests.
 *   - Loads and stores of the guest that were translated before and are not yet done: a DSB after a TLBI waits for them.
 *
 * Broken variants: NO_FIRST_DSB, NO_MIDDLE_DSB, NO_LAST_DSB, NO_IPAS2, NO_VMALLE1, VMALLE1_FIRST, NOT_BROADCAST.
 */

#define CPUS 2

bool hardware_never_reaches_a_frame_given_back;

bool entry = true;                     /* the leaf: valid */
bool store_waits;                      /* its old value may still be walked to */
bool stage2[CPUS], combined[CPUS];     /* TLBs hold the old translation */
bool ipas2[CPUS], vmalle1[CPUS];       /* a TLBI was issued and is not complete on that CPU */
bool given_back;

inline dsb() { !store_waits && !ipas2[0] && !ipas2[1] && !vmalle1[0] && !vmalle1[1] }

inline issue_ipas2() {
#ifdef NOT_BROADCAST
  atomic { ipas2[0] = true }                            /* Gather::invalidate */
#else
  atomic { ipas2[0] = true; ipas2[1] = true }           /* Gather::invalidate */
#endif
}
inline issue_vmalle1() {
#ifdef NOT_BROADCAST
  atomic { vmalle1[0] = true }                          /* Gather::flush */
#else
  atomic { vmalle1[0] = true; vmalle1[1] = true }       /* Gather::flush */
#endif
}

active proctype Unmapper() {
  atomic { entry = false; store_waits = true };        /* Locked::replace_leaf: the marker */
#ifndef NO_FIRST_DSB
  dsb();                                               /* Gather::flush: DSB ISHST */
#endif
#ifdef VMALLE1_FIRST
  issue_vmalle1(); dsb(); issue_ipas2();
#else
#ifndef NO_IPAS2
  issue_ipas2();                                       /* Gather::invalidate: TLBI IPAS2E1IS */
#endif
#ifndef NO_MIDDLE_DSB
  dsb();                                               /* DSB ISH */
#endif
#ifndef NO_VMALLE1
  issue_vmalle1();                                     /* TLBI VMALLE1IS */
#endif
#endif
#ifndef NO_LAST_DSB
  dsb();                                               /* DSB ISH; Flushed exists */
#endif
  given_back = true                                    /* release(Removed): the frame is somebody else's */
}

/* hardware: a CPU in the guest, and its walker */
active [CPUS] proctype Guest() {
  byte me = _pid - 1;
end:
  do
  :: atomic { (entry || store_waits) && !stage2[me] -> stage2[me] = true }         /* a walk of stage 2 */
  :: atomic { (entry || store_waits || stage2[me]) && !combined[me] -> combined[me] = true }
  :: atomic { ipas2[me] -> ipas2[me] = false; stage2[me] = false }
  :: atomic { vmalle1[me] -> vmalle1[me] = false; combined[me] = false }
  :: atomic { given_back && (combined[me] || stage2[me] || entry || store_waits) ->
       assert(hardware_never_reaches_a_frame_given_back) }                         /* an access */
  od
}

/* hardware: a store reaches the walkers */
active proctype Stores() {
end:
  do
  :: atomic { store_waits -> store_waits = false }
  od
}
