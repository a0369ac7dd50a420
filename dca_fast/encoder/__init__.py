"""What encoders do beyond one walk: searches, gradients, the restoration filter's fit, sizes and fidelities."""
