<?php

namespace Claviger\Symfony;

use Claviger\Key;
use Symfony\Component\PropertyAccess\PropertyAccessorInterface;
use Symfony\Component\Security\Core\Signature\Exception\ExpiredSignatureException;
use Symfony\Component\Security\Core\Signature\Exception\InvalidSignatureException;
use Symfony\Component\Security\Core\Signature\ExpiredSignatureStorage;
use Symfony\Component\Security\Core\Signature\SignatureHasher as Base;
use Symfony\Component\Security\Core\User\UserInterface;

/**
 * Symfony's hasher for login links and remember-me cookies with its hashes made
 * and checked in custody. The user's properties stay here: custody has their hash.
 */
class SignatureHasher extends Base
{
    private const FIELDS = 44; // where the hash of the properties begins, after the tag
    private const LAST = 253402300799; // the end of the year 9999: custody knows no later time

    private Key $key;

    /** @param string $secret of this start alone */
    public function __construct(
        PropertyAccessorInterface $propertyAccessor,
        array $signatureProperties,
        #[\SensitiveParameter] string $secret,
        private readonly ?ExpiredSignatureStorage $used = null,
        private readonly ?int $uses = null,
    ) {
        parent::__construct($propertyAccessor, $signatureProperties, $secret, $used, $uses);
    }

    public function setKey(Key $key): void
    {
        $this->key = $key;
    }

    public function acceptSignatureHash(string $userIdentifier, int $expires, #[\SensitiveParameter] string $hash): void
    {
        $this->accept($userIdentifier, $expires, $hash, ['any_purpose' => true]);
    }

    public function verifySignatureHash(UserInterface $user, int $expires, #[\SensitiveParameter] string $hash): void
    {
        $this->accept(self::name($user), $expires, $hash, ['purpose' => $this->fields($user, $expires)]);
        if ($this->used && $this->uses) {
            if ($this->used->countUsages($hash) >= $this->uses) {
                throw new ExpiredSignatureException("Signature can only be used \"$this->uses\" times.");
            }
            $this->used->incrementUsages($hash);
        }
    }

    public function computeSignatureHash(UserInterface $user, int $expires): string
    {
        return $this->key->protect('symfony.signature', '', [
            'purpose' => $this->fields($user, $expires),
            'over' => self::name($user),
            'expires' => $expires,
        ]);
    }

    private function accept(string $name, int $expires, #[\SensitiveParameter] string $hash, array $params): void
    {
        if ($expires < time()) {
            throw new ExpiredSignatureException('Signature has expired.');
        }
        if ($expires > self::LAST) { // a visitor's own words
            throw new InvalidSignatureException('Invalid or expired signature.');
        }
        // Its age was checked above, by the clock of this machine as Symfony does.
        if ($this->key->unprotect('symfony.signature', $hash, $params + ['over' => $name, 'expires' => $expires], true) === null) {
            throw new InvalidSignatureException('Invalid or expired signature.');
        }
    }

    /** The hash of the user's properties, which does not depend on the secret. */
    private function fields(UserInterface $user, int $expires): string
    {
        return substr(parent::computeSignatureHash($user, $expires), self::FIELDS);
    }

    private static function name(UserInterface $user): string
    {
        return method_exists($user, 'getUserIdentifier') ? $user->getUserIdentifier() : $user->getUsername();
    }
}
