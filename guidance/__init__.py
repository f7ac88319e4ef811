"""The rules and the algebra they live in. Knows nothing of pipelines, text or images.

``prediction`` levels and what a network's answer means; ``query`` what rules ask and how it is answered; ``rule`` the
interface of a method; ``stack`` sequences of rules; ``rules`` the methods; ``registry`` their names; ``run`` one run;
``testing`` the oracle and the invariants that every rule passes.
"""
