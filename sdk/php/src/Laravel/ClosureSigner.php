<?php

namespace Claviger\Laravel;

use Laravel\SerializableClosure\Contracts\Signer;

/** Signs the closures that wait in queues. */
final class ClosureSigner implements Signer
{
    /** @param \Closure(): Encrypter $encrypter */
    public function __construct(private readonly \Closure $encrypter)
    {
    }

    public function sign(#[\SensitiveParameter] $serialized)
    {
        return ['serializable' => $serialized, 'hash' => ($this->encrypter)()->signClosure($serialized)];
    }

    public function verify(#[\SensitiveParameter] $signature)
    {
        return ($this->encrypter)()->signedClosure($signature['serializable'], $signature['hash']);
    }
}
